set -e
umask 022
# What the site needs to reach its mirrors: written by sifkit beside its caches, absent in a plain build.
if [ -r /var/cache/sifkit/site.sh ]; then set +x; . /var/cache/sifkit/site.sh; set -x; fi
export HOME=/var/cache/sifkit TMPDIR=/var/cache/sifkit
export PIP_CACHE_DIR=/var/cache/sifkit/pip UV_CACHE_DIR=/var/cache/sifkit/uv UV_LINK_MODE=copy PYC_INVALIDATION_MODE=UNCHECKED_HASH
python3.13 -m venv /opt/venv
grep -A1 '^uv==' /var/cache/sifkit/requirements.lock > /opt/venv/uv.lock
install_uv() {
    /opt/venv/bin/pip install --quiet --disable-pip-version-check --no-compile --require-hashes --only-binary :all: \
        -r /opt/venv/uv.lock
}
# pip does not load a file again whose copy in its cache is damaged.
install_uv || { /opt/venv/bin/pip cache purge; install_uv; }
export UV_CACHE_DIR=/opt/uv UV_LINK_MODE=hardlink
unset PYC_INVALIDATION_MODE # each layer's bytecode gets the time that its sources have in an image
/opt/venv/bin/python -m compileall -q -f --invalidation-mode unchecked-hash /opt/venv/lib/python3.13/site-packages/pip
# all that uv keeps is used
/opt/venv/bin/uv pip install --python /opt/venv/bin/python --require-hashes --no-deps --compile-bytecode \
    --build-constraints /var/cache/sifkit/requirements.lock -r /var/cache/sifkit/missing.lock
# Of wheels that are files of the host, uv notes when it saw them; an image holds no times.
grep -l '^[^/]*/uv_cache.json,' /opt/venv/lib/python3.13/site-packages/*.dist-info/RECORD | while read -r record; do
    sed -i '/uv_cache.json,/d' "$record"
    rm "${record%RECORD}uv_cache.json"
done
rm -f /opt/venv/uv.lock
