"""Which wanted blobs are sent, and which are not sent twice."""

import asyncio
from pathlib import Path

import pytest

from protocol.blobs import BlobRef
from shared.blobs import BlobStore
from shared.exchange.sources import SourceFailed
from worker import uploads
from worker.uploads import Uploads


class Line:
    """Where uploads go; each waits until the test lets it end."""

    def __init__(self) -> None:
        self.begun: list[BlobRef] = []
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def upload(self, ref: BlobRef) -> None:
        self.begun.append(ref)
        await asyncio.shield(self.end)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_blob_is_sent_once_at_a_time_and_not_again_as_soon_as_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, line = BlobStore(tmp_path), Line()
    ref, not_here = store.add_bytes(b"weights"), BlobRef(digest="0" * 64, size=5)
    sending = Uploads(store, line.upload)
    for _ in range(3):
        sending.heed([ref, not_here])
        await settled()
    assert line.begun == [ref]
    line.end.set_result(None)
    await settled()
    sending.heed([ref])
    await settled()
    assert line.begun == [ref]
    monkeypatch.setattr(uploads, "UPLOADED_SECONDS", 0.0)
    sending.heed([ref])
    await settled()
    assert line.begun == [ref, ref]
    await sending.stop()


@pytest.mark.parametrize(
    "failure", [SourceFailed("the stream broke"), FileNotFoundError(), OSError("a bad sector")]
)
async def test_what_failed_is_sent_again_when_it_is_wanted_again(
    tmp_path: Path, failure: Exception
) -> None:
    store, line = BlobStore(tmp_path), Line()
    ref = store.add_bytes(b"weights")
    sending = Uploads(store, line.upload)
    sending.heed([ref])
    await settled()
    line.end.set_exception(failure)
    await settled()
    sending.heed([ref])
    await settled()
    assert line.begun == [ref, ref]
    await sending.stop()


async def test_a_mistake_in_an_upload_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, line = BlobStore(tmp_path), Line()
    sending = Uploads(store, line.upload)
    sending.heed([store.add_bytes(b"weights")])
    await settled()
    line.end.set_exception(RuntimeError("a mistake"))
    await settled()
    assert [record.message for record in caplog.records] == ["a background task failed"]
    await sending.stop()
