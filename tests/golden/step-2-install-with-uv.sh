set -e
umask 022
# What the site needs to reach its mirrors: written by sifkit beside its caches, absent in a plain build.
if [ -r /var/cache/sifkit/site.sh ]; then set +x; . /var/cache/sifkit/site.sh; set -x; fi
export HOME=/var/cache/sifkit TMPDIR=/var/cache/sifkit
python3.13 -m venv --without-pip /opt/venv
export UV_CACHE_DIR=/opt/uv UV_LINK_MODE=hardlink
unset PYC_INVALIDATION_MODE # each layer's bytecode gets the time that its sources have in an image
# all that uv keeps is used
/opt/venv/bin/uv pip install --python /opt/venv/bin/python --require-hashes --no-deps --compile-bytecode \
    --build-constraints /var/cache/sifkit/requirements.lock -r /var/cache/sifkit/missing.lock
# Of wheels that are files of the host, uv notes when it saw them; an image holds no times.
grep -l '^[^/]*/uv_cache.json,' /opt/venv/lib/python3.13/site-packages/*.dist-info/RECORD | while read -r record; do
    sed -i '/uv_cache.json,/d' "$record"
    rm "${record%RECORD}uv_cache.json"
done
rm -f /opt/venv/uv.lock
