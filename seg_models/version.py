"""The version of segray, said here only: pyproject.toml reads it, and code sent to a cluster has no metadata to ask."""

__version__ = "0.1.0"
