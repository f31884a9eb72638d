"""sifkit: Apptainer images for LLaMA-Factory, from a short YAML to a verified training job."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("sifkit")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+source"
