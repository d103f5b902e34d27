"""What the SDKs of object stores raise, as launch's own errors that say which variable or permission is missing.

The SDKs are known by name here, not imported: each is installed only where it is used.
"""

from __future__ import annotations

from launch.errors import ConfigError, LaunchError, TemporaryError

_NO_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "CredentialRetrievalError",
    "DefaultCredentialsError",
)
_NO_SUCH_REQUEST = ("ParamValidationError", "InvalidRegionError", "NoRegionError")
_SDKS = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "requests", "fsspec")

_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account",
}
_PERMISSIONS = {
    "s3": "s3:ListBucket on the bucket, s3:GetObject, s3:PutObject and s3:DeleteObject on what is in it",
    "gs": "storage.objects.list, .get, .create and .delete (the role Storage Object User)",
}
_ENDPOINTS = {
    "s3": "AWS_ENDPOINT_URL and AWS_REGION say where it is",
    "gs": "STORAGE_EMULATOR_HOST says where it is, if it is not Google's own",
}


def as_ours(exc: Exception, url: str) -> Exception:
    """Return what an error of a store at ``url`` means; the same one where its caller knows better, or nobody does."""
    if isinstance(exc, LaunchError | FileNotFoundError):
        return exc
    kind, text = type(exc).__name__, str(exc).strip()
    code = str(getattr(exc, "code", ""))
    store = "gs" if url.startswith("g") else "s3"
    where = f"LAUNCH_ARTIFACTS: {url}"
    if kind in _NO_CREDENTIALS:
        return ConfigError(f"{where} cannot be used without credentials ({text}): {_CREDENTIALS[store]}")
    if isinstance(exc, PermissionError) or code in ("401", "403") or text.startswith("Forbidden"):
        return ConfigError(
            f"{where} does not let us in ({_line(text)}). Its user needs {_PERMISSIONS[store]}; who it is: "
            f"{_CREDENTIALS[store]}"
        )
    if kind in _NO_SUCH_REQUEST or "bucket is not valid" in text:
        return ConfigError(f"{where} cannot be used as a store: {_line(text)}")
    if isinstance(exc, OSError | TimeoutError) or type(exc).__module__.partition(".")[0] in _SDKS:
        why = _line(text) or kind
        return TemporaryError(f"the artifact store {url} cannot be used: {why} ({_ENDPOINTS[store]})")
    return exc


def no_bucket(url: str) -> ConfigError:
    """Return the error for a bucket that is not there."""
    bucket = url.partition("://")[2].partition("/")[0]
    return ConfigError(f"LAUNCH_ARTIFACTS: {url}: there is no bucket {bucket!r}; make it, or name another")


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
