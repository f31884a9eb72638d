# llamafactory-0.9.5-cu130-extras: LLaMA-Factory 0.9.5, torch 2.13.0 for CUDA 13.0, Python 3.13
# Written by sifkit from definitions/llamafactory-0.9.5-cu130-extras.yaml and its lock. Docker builds it, with BuildKit or without,
# in the directory that holds definitions/:
#     docker build --network host -t llamafactory-0.9.5-cu130-extras -f llamafactory-0.9.5-cu130-extras.Dockerfile definitions
# --render --buildkit gives the one that keeps packages in BuildKit's caches.

FROM debian:trixie-slim

RUN ["/bin/sh", "-exc", "\
    umask 022\n\
    mkdir -p /var/cache/sifkit\n\
    # What the site needs to reach its mirrors: written by sifkit beside its caches, absent in a plain build.
    if [ -r /var/cache/sifkit/site.sh ]; then set +x; . /var/cache/sifkit/site.sh; set -x; fi\n\
    # Debian packages. apt may not change users in a user namespace, hence the sandbox user.
    umask 022\n\
    export DEBIAN_FRONTEND=noninteractive\n\
    apt-get update -q -o APT::Sandbox::User=root\n\
    apt-get install -qy --no-install-recommends -o APT::Sandbox::User=root \
        ca-certificates \
        g++ \
        gcc \
        git \
        libc6-dev \
        python3 \
        python3-dev \
        python3-venv\n\
    # Which packages these are, each with the sha256 that the mirror's index gives of its file.
    mkdir -p /opt/sifkit\n\
    {\n\
        apt-get indextargets --format '$(FILENAME)' 'Created-By: Packages' | xargs -r /usr/lib/apt/apt-helper cat-file\n\
        echo\n\
        dpkg-query -W -f '${db:Status-Status}: ${Package} ${Version} ${Architecture}\\n'\n\
    } | awk '\n\
        /^Package: / { name = $2 }\n\
        /^Version: / { version = $2 }\n\
        /^Architecture: / { architecture = $2 }\n\
        /^SHA256: / { sha256 = $2 }\n\
        /^$/ { if (sha256) known[name \" \" version \" \" architecture] = sha256; sha256 = \"\" }\n\
        /^installed: / { key = $2 \" \" $3 \" \" $4; print key, (key in known) ? known[key] : \"-\" }\n\
    ' | LC_ALL=C sort > /opt/sifkit/debian-packages\n\
    test -s /opt/sifkit/debian-packages\n\
    # Nothing stays of the day, the machine or this run: two builds give the same files.
    apt-get clean\n\
    rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/cache/ldconfig/* /var/cache/man/* \
        /var/cache/fontconfig/* /var/lib/dbus/machine-id /var/lib/systemd/random-seed /etc/ssh/ssh_host_*\n\
    rm -f /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /etc/subuid- /etc/subgid-\n\
    find /var/log -type f -delete\n\
    [ ! -e /etc/machine-id ] || : > /etc/machine-id\n\
    sed -i 's/^\\([^:]*:[^:]*\\):[0-9]*:/\\1::/' /etc/shadow\n\
    # Python's bytecode is valid for its source's time, but times in an image are made all the same. This makes it valid
    # for good. (Not in /tmp, which is the host's. Python takes indented lines only below something.)
    find /usr /opt -path '*/__pycache__/*.pyc' | /usr/bin/python3 -c 'if \"indented\":\n\
        import os, struct, sys\n\
        from importlib.util import source_from_cache, source_hash\n\
        for path in sys.stdin.read().splitlines():\n\
            source = source_from_cache(path)\n\
            with open(path, \"r+b\") as pyc:\n\
                if os.path.exists(source):\n\
                    now = os.stat(source)\n\
                    if pyc.read(16)[4:] == struct.pack(\"<3I\", 0, int(now.st_mtime), now.st_size):\n\
                        pyc.seek(4)\n\
                        pyc.write(struct.pack(\"<I\", 1) + source_hash(open(source, \"rb\").read()))\n\
    '\n\
"]

COPY ["llamafactory-0.9.5-cu130-extras.lock", "/opt/sifkit/requirements.lock"]
COPY ["llamafactory-0.9.5-cu130-extras.yaml", "/opt/sifkit/spec.yaml"]

RUN ["/bin/sh", "-exc", "\
    umask 022\n\
    # What the site needs to reach its mirrors: written by sifkit beside its caches, absent in a plain build.
    if [ -r /var/cache/sifkit/site.sh ]; then set +x; . /var/cache/sifkit/site.sh; set -x; fi\n\
    # Python packages: uv from the lock, by pip; then everything else in the lock, by uv. Each file is checked
    # against its hash; the few source archives are built with the setuptools that the lock pins. Bytecode does not
    # name the time of its source, so that all times in an image may be the same.
    export PIP_CACHE_DIR=/var/cache/sifkit/pip UV_CACHE_DIR=/var/cache/sifkit/uv UV_LINK_MODE=copy\n\
    python3.13 -m venv /opt/venv\n\
    grep -A1 '^uv==' /opt/sifkit/requirements.lock > /opt/venv/uv.lock\n\
    install_uv() {\n\
        /opt/venv/bin/pip install --quiet --disable-pip-version-check --no-compile --require-hashes --only-binary :all: \
            -r /opt/venv/uv.lock\n\
    }\n\
    # pip does not load a file again whose copy in its cache is damaged.
    install_uv || { /opt/venv/bin/pip cache purge; install_uv; }\n\
    /opt/venv/bin/uv pip install --python /opt/venv/bin/python --require-hashes \
        --build-constraints /opt/sifkit/requirements.lock \
        -r /opt/sifkit/requirements.lock\n\
    # Bytecode, on all processors. What a process compiled before shows in what it compiles next, so that every hundred
    # files of a package get one of their own. Tests get none: who imports one compiles it then. (Python takes
    # indented lines only below something.)
    /opt/venv/bin/python -I -W ignore -c 'if \"indented\":\n\
        import csv, glob, os, sys\n\
        from contextlib import suppress\n\
        from py_compile import PycInvalidationMode, PyCompileError, compile\n\
        site, mode = sys.argv[1], PycInvalidationMode[sys.argv[2]]\n\
        def sources(record):\n\
            with open(record, encoding=\"utf-8\", newline=\"\") as rows:\n\
                names = sorted(row[0] for row in csv.reader(rows) if row and row[0].endswith(\".py\"))\n\
            return [one for one in names if one[0] not in \"./\" and not {\"test\", \"tests\"} & set(one.split(\"/\")[:-1])]\n\
        def compile_all(names):\n\
            for name in names:\n\
                with suppress(PyCompileError): # a template, or not for this Python\n\
                    compile(os.path.join(site, name), doraise=True, invalidation_mode=mode)\n\
        packages = [sources(record) for record in sorted(glob.glob(site + \"/*.dist-info/RECORD\"))]\n\
        parts = [names[at : at + 100] for names in packages for at in range(0, len(names), 100)]\n\
        total, done, running, bad = sum(map(len, parts)), 0, 0, 0\n\
        processors = len(os.sched_getaffinity(0))\n\
        for part in parts + [None] * processors:\n\
            if running == processors or (running and not part):\n\
                bad += os.wait()[1] != 0\n\
                running -= 1\n\
            if part and os.fork() == 0:\n\
                code = 1\n\
                try:\n\
                    compile_all(part)\n\
                    code = 0\n\
                finally:\n\
                    os._exit(code)\n\
            if part:\n\
                running += 1\n\
                done += len(part)\n\
                if done == total or done // 1000 > (done - len(part)) // 1000:\n\
                    print(f\"bytecode: {done} of {total} files\", flush=True)\n\
        sys.exit(f\"bytecode: {bad} processes failed\" if bad else 0)\n\
    ' /opt/venv/lib/python3.13/site-packages UNCHECKED_HASH\n\
    # Which names a package is imported by: who asks importlib.metadata for them, as transformers does, else waits until
    # each file of each package without a top_level.txt was looked for. (Python takes indented lines only below something.)
    /opt/venv/bin/python -I -c 'if \"indented\":\n\
        import base64, hashlib, sys\n\
        from importlib.metadata import Distribution, packages_distributions\n\
        from pathlib import Path\n\
        names = {}\n\
        for name, packages in packages_distributions().items():\n\
            for package in packages:\n\
                names.setdefault(package, set()).add(name)\n\
        for info in Path(sys.argv[1]).glob(\"*.dist-info\"):\n\
            record, listed, whole = info / \"RECORD\", info / \"top_level.txt\", info / \"RECORD.new\"\n\
            found = names.get(Distribution.at(info).metadata[\"Name\"])\n\
            if not found or listed.exists() or not record.exists():\n\
                continue\n\
            text = \"\".join(name + \"\\n\" for name in sorted(found)).encode()\n\
            listed.write_bytes(text)\n\
            digest = base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b\"=\").decode()\n\
            row = f\"{info.name}/{listed.name},sha256={digest},{len(text)}\\n\"\n\
            whole.write_bytes(record.read_bytes().rstrip() + b\"\\n\" + row.encode())\n\
            whole.replace(record) # never written into: it may be a link to what a cache keeps\n\
    ' /opt/venv/lib/python3.13/site-packages\n\
    # A CUDA toolkit where everybody looks for it, of links into the wheels.
    mkdir -p /usr/local/cuda/lib64\n\
    ln -s lib /opt/venv/lib/python3.13/site-packages/nvidia/cu13/lib64 # where nvcc itself links from\n\
    for part in bin include nvvm; do ln -s /opt/venv/lib/python3.13/site-packages/nvidia/cu13/$part /usr/local/cuda/$part; done\n\
    for library in /opt/venv/lib/python3.13/site-packages/nvidia/cu13/lib/*; do\n\
        name=${library##*/}\n\
        ln -sf \"$library\" \"/usr/local/cuda/lib64/$name\"\n\
        case $name in *.so.*) ln -sf \"$library\" \"/usr/local/cuda/lib64/${name%%.so.*}.so\" ;; esac\n\
    done\n\
    # A plain build filled these caches itself; under sifkit they are the host's, and stay.
    [ -e /var/cache/sifkit/site.sh ] || rm -rf /var/cache/sifkit/pip /var/cache/sifkit/uv\n\
    rm -rf /opt/venv/uv.lock /root/.cache\n\
    # Copies have the modes of their files, which may be their owner's alone.
    chmod 644 /opt/sifkit/requirements.lock /opt/sifkit/spec.yaml\n\
"]

ENV PATH="/opt/venv/bin:${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}" \
    PYTHONNOUSERSITE="1" \
    CUDA_HOME="/usr/local/cuda"

RUN ["/bin/sh", "-exc", "\
    # `llamafactory-cli version` succeeds on a broken install; the trainer's import does not.
    /opt/venv/bin/python -c 'import torch, torchaudio, torchvision; \
        import llamafactory.train.tuner; \
        from llamafactory.extras.env import VERSION; \
        assert VERSION == \"0.9.5\", VERSION; \
        assert torch.__version__.split(\"+\")[0] == \"2.13.0\", torch.__version__; \
        assert torch.version.cuda == \"13.0\", torch.version.cuda; \
        print(\"ok: LLaMA-Factory\", VERSION, \"torch\", torch.__version__)'\n\
"]

LABEL org.opencontainers.image.title="llamafactory-0.9.5-cu130-extras" \
    org.opencontainers.image.version="0.9.5" \
    org.opencontainers.image.description="LLaMA-Factory 0.9.5, torch 2.13.0 for CUDA 13.0, Python 3.13" \
    org.opencontainers.image.base.name="debian-trixie" \
    org.sifkit.version="VERSION" \
    org.sifkit.spec-digest="sha256:d0b59f64840190af87771d58b5eca6125d918d69e2f7233cbe57893477007599" \
    org.sifkit.lock-digest="sha256:1cf704f9fa737721a2b737cc1e54f9144fef8c7bc5faf8e4e29998e504007dd5" \
    org.sifkit.python="3.13" \
    org.sifkit.torch="2.13.0" \
    org.sifkit.cuda="13.0" \
    org.sifkit.llamafactory="0.9.5" \
    org.sifkit.transformers="5.6.0"

ENTRYPOINT ["llamafactory-cli"]
CMD []
