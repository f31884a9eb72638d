set -e
umask 022
# What the site needs to reach its mirrors: written by sifkit beside its caches, absent in a plain build.
if [ -r /var/cache/sifkit/site.sh ]; then set +x; . /var/cache/sifkit/site.sh; set -x; fi
export HOME=/var/cache/sifkit TMPDIR=/var/cache/sifkit
export PIP_CACHE_DIR=/var/cache/sifkit/pip UV_CACHE_DIR=/var/cache/sifkit/uv UV_LINK_MODE=copy
python3.13 -m venv /opt/venv
grep -A1 '^uv==' /var/cache/sifkit/requirements.lock > /opt/venv/uv.lock
install_uv() {
    /opt/venv/bin/pip install --quiet --disable-pip-version-check --no-compile --require-hashes --only-binary :all: \
        -r /opt/venv/uv.lock
}
# pip does not load a file again whose copy in its cache is damaged.
install_uv || { /opt/venv/bin/pip cache purge; install_uv; }
export UV_CACHE_DIR=/opt/uv UV_LINK_MODE=hardlink
# all that uv keeps is used
/opt/venv/bin/uv pip install --python /opt/venv/bin/python --require-hashes --no-deps \
    --build-constraints /var/cache/sifkit/requirements.lock -r /var/cache/sifkit/missing.lock
# Each layer's bytecode gets the time that its sources have in an image.
# Bytecode, on all processors. What a process compiled before shows in what it compiles next, so that every hundred
# files of a package get one of their own. Tests get none: who imports one compiles it then. (Python takes
# indented lines only below something.)
/opt/venv/bin/python -I -W ignore -c 'if "indented":
    import csv, glob, os, sys
    from contextlib import suppress
    from py_compile import PycInvalidationMode, PyCompileError, compile
    site, mode = sys.argv[1], PycInvalidationMode[sys.argv[2]]
    def sources(record):
        with open(record, encoding="utf-8", newline="") as rows:
            names = sorted(row[0] for row in csv.reader(rows) if row and row[0].endswith(".py"))
        return [one for one in names if one[0] not in "./" and not {"test", "tests"} & set(one.split("/")[:-1])]
    def compile_all(names):
        for name in names:
            with suppress(PyCompileError): # a template, or not for this Python
                compile(os.path.join(site, name), doraise=True, invalidation_mode=mode)
    packages = [sources(record) for record in sorted(glob.glob(site + "/*.dist-info/RECORD"))]
    parts = [names[at : at + 100] for names in packages for at in range(0, len(names), 100)]
    total, done, running, bad = sum(map(len, parts)), 0, 0, 0
    processors = len(os.sched_getaffinity(0))
    for part in parts + [None] * processors:
        if running == processors or (running and not part):
            bad += os.wait()[1] != 0
            running -= 1
        if part and os.fork() == 0:
            code = 1
            try:
                compile_all(part)
                code = 0
            finally:
                os._exit(code)
        if part:
            running += 1
            done += len(part)
            if done == total or done // 1000 > (done - len(part)) // 1000:
                print(f"bytecode: {done} of {total} files", flush=True)
    sys.exit(f"bytecode: {bad} processes failed" if bad else 0)
' /opt/venv/lib/python3.13/site-packages TIMESTAMP
# Of wheels that are files of the host, uv notes when it saw them; an image holds no times.
grep -l '^[^/]*/uv_cache.json,' /opt/venv/lib/python3.13/site-packages/*.dist-info/RECORD | while read -r record; do
    sed -i '/uv_cache.json,/d' "$record"
    rm "${record%RECORD}uv_cache.json"
done
# Which names a package is imported by: who asks importlib.metadata for them, as transformers does, else waits until
# each file of each package without a top_level.txt was looked for. (Python takes indented lines only below something.)
/opt/venv/bin/python -I -c 'if "indented":
    import base64, hashlib, sys
    from importlib.metadata import Distribution, packages_distributions
    from pathlib import Path
    names = {}
    for name, packages in packages_distributions().items():
        for package in packages:
            names.setdefault(package, set()).add(name)
    for info in Path(sys.argv[1]).glob("*.dist-info"):
        record, listed, whole = info / "RECORD", info / "top_level.txt", info / "RECORD.new"
        found = names.get(Distribution.at(info).metadata["Name"])
        if not found or listed.exists() or not record.exists():
            continue
        text = "".join(name + "\n" for name in sorted(found)).encode()
        listed.write_bytes(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b"=").decode()
        row = f"{info.name}/{listed.name},sha256={digest},{len(text)}\n"
        whole.write_bytes(record.read_bytes().rstrip() + b"\n" + row.encode())
        whole.replace(record) # never written into: it may be a link to what a cache keeps
' /opt/venv/lib/python3.13/site-packages
rm -f /opt/venv/uv.lock
