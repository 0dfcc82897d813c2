"""A bucket of S3, or of a server that speaks its protocol. No Django.

Files go there as multipart uploads: each chunk is a part, whose digest the server tells; an upload
that was cut short is taken up again, and the object is there all at once.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from pipelines import reach
from pipelines.connectors.judged import judged
from pipelines.transfers import Away, Chunk, Damaged, below
from workers.node.channel import WorkError

CONNECT_S, READ_S = 10, 60
TAG = "flowml-sha256"
ABANDONED = timedelta(days=7)  # nobody takes an upload up again that was begun so long ago
# Of errors, those that somebody has to do something about.
SAYS = {
    "NoSuchBucket": "There is no such bucket",
    "AccessDenied": "These keys are not allowed to do that",
    "403": "These keys are not allowed to do that, or are wrong",
    "InvalidAccessKeyId": "This access key is not known there",
    "SignatureDoesNotMatch": "The secret key does not fit the access key",
    "EntityTooSmall": "Its parts are too small",
    "QuotaExceeded": "The bucket is full",
}
MISSING = frozenset({"404", "NoSuchKey", "NotFound"})


class Bucket:
    """``settings``: host, port, tls, bucket, region, folder. ``secrets``: both keys."""

    least_chunk = 5 << 20  # of S3's parts, but for the last

    def __init__(
        self,
        settings: Mapping[str, Any],
        secrets: Mapping[str, str],
        rules: Sequence[reach.Rule],
        *,
        resolve: reach.Resolver | None = None,
    ) -> None:
        self._settings = settings
        self._rules = rules
        self._resolve = resolve
        self.bucket = str(settings.get("bucket") or "")
        scheme = "http" if settings.get("tls") == "no" else "https"
        host = str(settings["host"])
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        port = int(settings.get("port") or 443)
        self.where = f"{settings['host']}:{port}/{self.bucket}"
        # Nothing is taken from the node's own environment: no profile, proxy or role of a machine.
        self._client = boto3.session.Session().client(
            "s3",
            endpoint_url=f"{scheme}://{host}:{port}",
            region_name=str(settings.get("region") or "us-east-1"),
            aws_access_key_id=str(secrets.get("access_key") or "none"),
            aws_secret_access_key=str(secrets.get("secret_key") or "none"),
            config=Config(
                connect_timeout=CONNECT_S,
                read_timeout=READ_S,
                retries={"total_max_attempts": 1},
                proxies={},
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                max_pool_connections=32,
            ),
        )

    async def ask(self, what: str, **wanted: Any) -> Any:
        """One call of the client. Raises Away, WorkError, or KeyError for what is not there."""

        def call() -> Any:
            with judged(self._rules, self._resolve):
                answer = getattr(self._client, what)(Bucket=self.bucket, **wanted)
                if "Body" in answer:
                    answer["Body"] = answer["Body"].read()
                return answer

        try:
            return await asyncio.to_thread(call)
        except reach.Refused as refused:
            raise WorkError(str(refused), code="not-allowed") from None
        except ClientError as error:
            raise self._told(error) from None
        except (BotoCoreError, OSError) as error:
            inner = getattr(error, "kwargs", {}).get("error")
            if isinstance(inner, reach.Refused):
                raise WorkError(str(inner), code="not-allowed") from None
            text = " ".join(str(error).split())[:200]
            raise Away(f"{self.where} can't be reached ({text}).") from None

    def _told(self, error: ClientError) -> Exception:
        code = str(error.response.get("Error", {}).get("Code") or "")
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
        if code in MISSING or code == "NoSuchUpload":
            return KeyError(code)
        if code in SAYS:
            text = f"{SAYS[code]} ({self.where}). Check bucket, keys and what they may do."
            return WorkError(text, code="connection")
        if status >= 500 or code in {"SlowDown", "RequestTimeout"}:
            return Away(f"{self.where} said: {code}.")
        return Damaged(f"{self.where} said: {code or status}.")

    async def check(self) -> str:
        key = below(str(self._settings.get("folder") or ""), ".flowml-test")
        try:
            # Some servers make a bucket of whatever is written to.
            await self.ask("list_objects_v2", MaxKeys=1)
            await self.ask("put_object", Key=key, Body=b"FlowML was here.\n")
            await self.ask("delete_object", Key=key)
        except KeyError:
            raise WorkError(f"There is no such bucket ({self.where}).", code="connection") from None
        return f"The bucket {self.bucket} at {self.where} takes files."

    async def sweep(self, key: str) -> None:
        """End what was never finished, whose parts cost room: other uploads of ``key``, which is
        there now, and below the connection's own folder those that were begun long ago.

        Without a folder the bucket may be others', too: only the key is looked at. As it does no
        harm where it fails, what goes wrong is left for the next time.
        """
        folder = str(self._settings.get("folder") or "").strip("/")
        prefix, until = f"{folder}/" if folder else key, datetime.now(UTC) - ABANDONED
        try:
            found = await self.ask("list_multipart_uploads", Prefix=prefix)
            for one in found.get("Uploads", ()):
                if one["Key"] == key or (folder and one["Initiated"] < until):
                    of = {"Key": one["Key"], "UploadId": one["UploadId"]}
                    await self.ask("abort_multipart_upload", **of)
        except (WorkError, Damaged, Away, KeyError):
            pass

    def file(self, name: str, *, reading: bool = False) -> "Object":
        return Object(self, below(str(self._settings.get("folder") or ""), name).lstrip("/"))


class Object:
    """A transfers.Far, and its own lane: the client may be used side by side."""

    most_lanes = 16
    compares = False

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket = bucket
        self._key = key
        self._upload = ""
        self._parts: dict[int, tuple[str, int]] = {}
        self._size = 0
        self._sha256 = ""

    async def lane(self) -> "Object":
        return self

    async def close(self) -> None:
        pass

    async def leave(self) -> None:
        pass

    async def _ask(self, what: str, **wanted: Any) -> Any:
        return await self._bucket.ask(what, Key=self._key, **wanted)

    async def size(self) -> int | None:
        try:
            return int((await self._ask("head_object"))["ContentLength"])
        except KeyError:
            return None

    async def digest(self, *, partial: bool) -> str:
        """As it was noted beside the object when it was sent, if it is still that object."""
        if partial:
            return ""  # each part was compared
        try:
            etag = (await self._ask("head_object"))["ETag"].strip('"')
            tags = {one["Key"]: one["Value"] for one in (await self._tags())}
        except KeyError:
            return ""
        sha256, _, of = tags.get(TAG, "").partition(":")
        return sha256 if of == etag else ""

    async def _tags(self) -> list[dict[str, str]]:
        try:
            return list((await self._ask("get_object_tagging"))["TagSet"])
        except (WorkError, Damaged):
            return []  # not every server, nor every key, does that

    async def begin(self, size: int, sha256: str) -> int:
        self._size, self._sha256 = size, sha256
        self._upload, self._parts = "", {}
        if not size:
            return 0
        found = await self._bucket.ask("list_multipart_uploads", Prefix=self._key)
        mine = [one for one in found.get("Uploads", ()) if one["Key"] == self._key]
        if mine:
            self._upload = max(mine, key=lambda one: one["Initiated"])["UploadId"]
            marker = 0
            while True:
                page = await self._ask("list_parts", UploadId=self._upload, PartNumberMarker=marker)
                for part in page.get("Parts", ()):
                    self._parts[part["PartNumber"]] = (part["ETag"].strip('"'), part["Size"])
                if not page.get("IsTruncated"):
                    break
                marker = page["NextPartNumberMarker"]
        else:
            self._upload = (await self._ask("create_multipart_upload"))["UploadId"]
        return size if self._parts else 0

    async def has(self, chunk: Chunk, data: bytes) -> bool:
        return self._parts.get(chunk.id + 1) == (await _md5(data), len(data))

    async def write(self, chunk: Chunk, data: bytes) -> None:
        wanted = {"UploadId": self._upload, "PartNumber": chunk.id + 1, "Body": data}
        try:
            answer = await self._ask("upload_part", **wanted)
        except KeyError:
            raise Away("the upload was ended by somebody else; run it again.") from None
        self._parts[chunk.id + 1] = (answer["ETag"].strip('"'), len(data))

    async def read(self, chunk: Chunk) -> bytes:
        last = chunk.offset + chunk.size - 1
        answer = await self._ask("get_object", Range=f"bytes={chunk.offset}-{last}")
        return bytes(answer["Body"])

    async def finish(self) -> None:
        if not self._size:
            await self._ask("put_object", Body=b"")
            return
        parts = [
            {"PartNumber": number, "ETag": etag}
            for number, (etag, _) in sorted(self._parts.items())
        ]
        try:
            await self._ask(
                "complete_multipart_upload",
                UploadId=self._upload,
                MultipartUpload={"Parts": parts},
            )
        except KeyError:
            if await self.size() != self._size:  # else it is done, and the answer was lost
                raise Away("the upload was ended by somebody else; run it again.") from None
        try:
            etag = (await self._ask("head_object"))["ETag"].strip('"')
            tags = {"TagSet": [{"Key": TAG, "Value": f"{self._sha256}:{etag}"}]}
            await self._ask("put_object_tagging", Tagging=tags)
        except (WorkError, Damaged, KeyError):
            pass  # then nobody can tell later that it is there already
        await self._bucket.sweep(self._key)


async def _md5(data: bytes) -> str:
    def digest() -> str:
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    return await asyncio.to_thread(digest)
