"""Transfers against a local server: resumed, refused, wrong, and asked for twice at once."""

import concurrent.futures
import contextlib
import functools
import hashlib
import http.server
import io
import logging
import os
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest
import torch

from sam4ir.priors.sam.load import build_sam, load_sam
from sam4ir.priors.zoo import sources
from sam4ir.priors.zoo import weights as zoo
from sam4ir.priors.zoo.download import UnreachableError, WeightsError, accept, is_accepted, transfer
from sam4ir.priors.zoo.sources import Drive, Url
from sam4ir.priors.zoo.weights import Entry, ZooNetwork, cached, load_state, resolve
from sam4ir.registry import ARCHS

BODY = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(BODY).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `body`. ranges: whether Range is understood; breaks: bytes after which each of the next replies stops."""

    def __init__(self, handler=None):
        super().__init__(("127.0.0.1", 0), handler or Handler)
        self.ranges, self.breaks, self.asked, self.body = True, [], [], BODY
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.url = f"{self.address}/tiny-{DIGEST[:8]}.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, body = self.server, self.server.body
        asked = self.headers.get("Range")
        server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : start + server.breaks.pop(0)] if server.breaks else body[start:])

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serving(server):
    with server:
        thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server():
    with serving(Server()) as server:
        yield server


@pytest.fixture
def tiny(server, monkeypatch):
    """The zoo with one entry, served locally."""
    entry = Entry("tiny", "a test", "none", (Url(server.url, DIGEST, len(BODY)),))
    monkeypatch.setattr(zoo, "ENTRIES", {"tiny": entry})
    return entry


def test_a_missing_file_is_fetched_once_and_then_found_without_the_network(server, tiny, tmp_path):
    path = resolve("tiny", tmp_path)
    assert path == tmp_path / f"tiny-{DIGEST[:8]}.pth"
    assert path.read_bytes() == BODY
    assert resolve("tiny", tmp_path) == path
    assert server.asked == [None]
    assert not list(tmp_path.glob("*.part"))


def test_an_interrupted_transfer_goes_on_where_it_ended(server, tmp_path):
    server.breaks = [100_000, 50_000]
    transfer(server.url, tmp_path / "x.part", len(BODY))
    assert (tmp_path / "x.part").read_bytes() == BODY
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_a_part_file_of_an_earlier_run_is_used(server, tiny, tmp_path):
    (tmp_path / f"{tiny.sources[0].file}.part").write_bytes(BODY[:777])
    assert resolve("tiny", tmp_path).read_bytes() == BODY
    assert server.asked == ["bytes=777-"]


def test_a_server_that_ignores_ranges_sends_it_all_again(server, tmp_path):
    server.ranges = False
    part = tmp_path / "x.part"
    part.write_bytes(b"something else")
    transfer(server.url, part, len(BODY))
    assert part.read_bytes() == BODY


@pytest.mark.parametrize("size", [None, len(BODY)])
def test_a_part_file_longer_than_the_whole_is_started_again(server, tmp_path, size):
    part = tmp_path / "x.part"
    part.write_bytes(BODY + b"more")
    transfer(server.url, part, size)
    assert part.read_bytes() == BODY


def test_a_server_that_always_breaks_off_is_given_up_and_the_part_is_kept(server, tmp_path):
    server.breaks = [1000] * 50
    with pytest.raises(UnreachableError, match="broke off at 5,000 bytes; run again"):
        transfer(server.url, tmp_path / "x.part", len(BODY))
    assert (tmp_path / "x.part").stat().st_size == 5000


def test_a_wrong_hash_is_an_error_and_leaves_nothing(server, monkeypatch, tmp_path):
    wrong = Entry("tiny", "a test", "none", (Url(server.url, "0" * 64),))
    monkeypatch.setattr(zoo, "ENTRIES", {"tiny": wrong})
    with pytest.raises(WeightsError, match=rf"sha256 {DIGEST}, expected 0000"):
        resolve("tiny", tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".lock"]


def test_another_size_is_refused_before_it_is_fetched(server, tmp_path):
    with pytest.raises(WeightsError, match=r"offers 1,280,000 bytes, expected 7"):
        transfer(server.url, tmp_path / "x.part", 7)
    assert not (tmp_path / "x.part").exists()


def test_a_hash_may_be_given_by_its_first_digits(tmp_path):
    (tmp_path / "x.part").write_bytes(BODY)
    accept(tmp_path / "x.part", tmp_path / "x", DIGEST[:8])
    assert is_accepted(tmp_path / "x", DIGEST[:8])
    assert (tmp_path / "x.sha256").read_text().splitlines()[0] == f"{DIGEST}  x"


def test_when_no_source_answers_the_error_says_which_file_to_put_where(monkeypatch, tmp_path):
    closed = "http://127.0.0.1:9/vgg-12345678.pth"
    entry = Entry("tiny", "a test", "none", (Url(closed, "12345678", 4096), Url(closed + "2", "ab")))
    monkeypatch.setattr(zoo, "ENTRIES", {"tiny": entry})
    with pytest.raises(WeightsError) as caught:
        resolve("tiny", tmp_path)
    for part in (closed, "refused", "4,096 bytes", "12345678", str(tmp_path / "vgg-12345678.pth")):
        assert part in str(caught.value)


def test_the_next_source_is_tried_when_the_first_does_not_answer(server, monkeypatch, tmp_path):
    sources = (Url("http://127.0.0.1:9/other.pth", "12345678"), Url(server.url, DIGEST))
    monkeypatch.setattr(zoo, "ENTRIES", {"tiny": Entry("tiny", "a test", "none", sources)})
    assert resolve("tiny", tmp_path).name == sources[1].file
    put_by_hand = tmp_path / "other.pth"
    put_by_hand.write_bytes(b"wrong")
    with pytest.raises(WeightsError, match="delete it"):
        resolve("tiny", tmp_path)


def test_a_file_put_there_by_hand_is_checked(tiny, tmp_path):
    path = tmp_path / tiny.sources[0].file
    path.write_bytes(BODY)
    assert resolve("tiny", tmp_path, download=False) == path
    path.write_bytes(BODY[:-1])
    with pytest.raises(WeightsError, match=r"is 1,279,999 bytes, expected 1,280,000"):
        resolve("tiny", tmp_path)
    path.with_name(path.name + ".sha256").unlink()
    path.write_bytes(BODY[:-1] + b"x")
    with pytest.raises(WeightsError, match=r"sha256 is .* delete it"):
        resolve("tiny", tmp_path)


def test_without_downloading_nothing_is_asked(server, tiny, tmp_path):
    assert cached("tiny", tmp_path) is None
    with pytest.raises(WeightsError, match="downloading is off"):
        resolve("tiny", tmp_path, download=False)
    assert server.asked == []


def test_the_cache_follows_sam4ir_home(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("SAM4IR_HOME", str(tmp_path))
    assert resolve("tiny").parent == tmp_path / "weights"


def test_unknown_names_get_the_near_miss():
    with pytest.raises(WeightsError, match=r"'vg16'; did you mean 'vgg16'\? known: vgg16, vgg19"):
        resolve("vg16")
    with pytest.raises(WeightsError, match="no such file"):
        load_state("nowhere.pth")


def test_threads_that_ask_at_once_fetch_once(server, tiny, tmp_path):
    together = threading.Barrier(4)

    def ask(_):
        together.wait()
        return resolve("tiny", tmp_path).read_bytes() == BODY

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(4)))
    assert server.asked == [None]


@pytest.mark.slow  # two more imports of torch
def test_two_processes_that_ask_at_once_fetch_once(server, tmp_path):
    program = (
        "import sys; from pathlib import Path; "
        "from sam4ir.priors.zoo import weights as zoo; from sam4ir.priors.zoo.sources import Url\n"
        f"zoo.ENTRIES = {{'tiny': zoo.Entry('tiny', '', '', (Url({server.url!r}, {DIGEST!r}),))}}\n"
        "print('ready', flush=True); input()\n"
        f"print(zoo.resolve('tiny', Path({str(tmp_path)!r})))"
    )
    command = [sys.executable, "-c", program]
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    printed = [process.communicate()[0].strip() for process in both]
    assert printed == [str(tmp_path / f"tiny-{DIGEST[:8]}.pth")] * 2
    assert Path(printed[0]).read_bytes() == BODY
    assert server.asked == [None]


# --- Google Drive: large files come behind a page with a form -------------------------------------------------------

NUMBER = "1AbCdEfGhIjKlMnOpQrStUvWxYz012345"
SCAN_PAGE = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<form action="/search"><input name="q" value="no"></form>
<p>is too large for Google to scan for viruses &amp; such. <a href="/open?id=x">name</a></p>
<form id="download-form" action="{action}" method="get"><input type="submit" value="Download anyway"/>
<input type="hidden" name="id" value="{number}"><input type="hidden" name="export" value="download">
<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="{uuid}"><input type="hidden"
name="at" value="a&amp;b c"></form><input name="outside" value="no"></body></html>"""


class DriveHandler(Handler):
    """Drive as a browser meets it: /uc sends on to /download, which asks back unless the form's fields and the cookie
    of its page come along. `page`: what /download shows instead; None for the file at once."""

    def do_GET(self):
        server = self.server
        place = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(place.query))
        server.visits.append((place.path, query))
        if place.path == "/uc":
            self.send_response(303)
            self.send_header("Location", f"/download?id={query['id']}&export=download")
            self.end_headers()
        elif server.page is None or self._agreed(query):
            super().do_GET()
        else:
            server.uuids.append(f"uuid-{len(server.uuids)}")
            page = server.page.format(action=server.action, number=query["id"], uuid=server.uuids[-1]).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.send_header("Set-Cookie", "NID=seen; path=/; HttpOnly")
            self.end_headers()
            self.wfile.write(page)

    def _agreed(self, query):
        told = {"id": NUMBER, "export": "download", "confirm": "t", "uuid": query.get("uuid"), "at": "a&b c"}
        return query == told and query["uuid"] in self.server.uuids and "NID=seen" in self.headers.get("Cookie", "")


@pytest.fixture
def drive(monkeypatch):
    server = Server(DriveHandler)
    server.visits, server.uuids, server.page = [], [], SCAN_PAGE
    server.action = f"{server.address}/download"
    monkeypatch.setattr(sources, "DRIVE", server.address)
    with serving(server):
        yield server


@pytest.mark.parametrize("action", ["whole", "/download"])
def test_a_large_file_on_drive_comes_through_the_form(drive, action, tmp_path):
    drive.action = action if action.startswith("/") else drive.action
    Drive(NUMBER, "big.pth", DIGEST, len(BODY)).fetch(tmp_path)
    assert (tmp_path / "big.pth").read_bytes() == BODY
    assert [path for path, _ in drive.visits] == ["/uc", "/download", "/download"]
    assert "outside" not in drive.visits[-1][1]
    assert "q" not in drive.visits[-1][1]


def test_a_large_file_on_drive_goes_on_where_it_broke_off(drive, tmp_path):
    drive.breaks = [400_000, 1000]
    Drive(NUMBER, "big.pth", DIGEST).fetch(tmp_path)
    assert (tmp_path / "big.pth").read_bytes() == BODY
    assert drive.asked == [None, "bytes=400000-", "bytes=401000-"]


def test_a_part_of_an_earlier_run_is_continued_from_drive(drive, tmp_path):
    (tmp_path / "big.pth.part").write_bytes(BODY[:5000])
    Drive(NUMBER, "big.pth", DIGEST).fetch(tmp_path)
    assert (tmp_path / "big.pth").read_bytes() == BODY
    assert drive.asked == ["bytes=5000-"]


def test_a_small_file_on_drive_comes_at_once(drive, tmp_path):
    drive.page = None
    Drive(NUMBER, "small.pth", DIGEST).fetch(tmp_path)
    assert (tmp_path / "small.pth").read_bytes() == BODY


QUOTA = "<html><head><title>Google Drive -\n Quota exceeded</title></head><body>Too many users</body></html>"


def test_a_page_without_a_download_is_told_and_the_mirror_is_tried(drive, server, monkeypatch, tmp_path):
    drive.page = QUOTA
    number = Drive(NUMBER, "big.pth", DIGEST)
    with pytest.raises(UnreachableError, match=r"offers no download \(Google Drive - Quota exceeded\)"):
        number.fetch(tmp_path)
    mirror = Url(server.url, DIGEST, save_as="big.pth")
    monkeypatch.setattr(zoo, "ENTRIES", {"big": Entry("big", "", "", (number, mirror))})
    assert resolve("big", tmp_path).read_bytes() == BODY
    monkeypatch.setattr(zoo, "ENTRIES", {"other": Entry("other", "", "", (Drive(NUMBER, "other.pth"),))})
    with pytest.raises(WeightsError, match=f"file/d/{NUMBER}/view") as caught:
        resolve("other", tmp_path)
    assert "Quota exceeded" in str(caught.value)
    assert str(tmp_path / "other.pth") in str(caught.value)


@pytest.mark.parametrize("action", ["file:///etc/passwd", "javascript:alert(1)", "ftp://127.0.0.1/x"])
def test_a_page_cannot_lead_elsewhere_than_the_web(drive, action, tmp_path):
    drive.action = action
    with pytest.raises(UnreachableError, match="leads to"):
        Drive(NUMBER, "big.pth", DIGEST).fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_drive_that_does_not_answer_is_unreachable(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "DRIVE", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match="refused"):
        Drive(NUMBER, "big.pth", DIGEST).fetch(tmp_path)


def test_a_web_page_in_the_place_of_a_file_does_not_spoil_what_came_before(drive, tmp_path):
    drive.page = QUOTA
    part = tmp_path / "x.part"
    part.write_bytes(BODY[:1000])
    with pytest.raises(UnreachableError, match=r"web page \(Google Drive - Quota exceeded\), not a file"):
        transfer(f"{drive.address}/download?id=1", part)
    assert part.read_bytes() == BODY[:1000]


# --- files whose hash nobody published ------------------------------------------------------------------------------

TINY = {"width": 4, "middle_blk_num": 1, "enc_blk_nums": [1], "dec_blk_nums": [1]}


def checkpoint(prefix="", **changes):
    """The bytes of a NAFNet's weights, as official tools write them."""
    state = ARCHS.get("NAFNet")(**{**TINY, **changes}).state_dict()
    buffer = io.BytesIO()
    torch.save({"params": {prefix + key: value for key, value in state.items()}}, buffer)
    return buffer.getvalue()


@pytest.fixture
def unpinned(server, monkeypatch):
    """The zoo with one entry without a hash; its server has the right file."""
    server.body = checkpoint("module.")
    entry = Entry(
        "tiny", "a test", "none", (Url(server.url, None, save_as="t.pth"),), network=ZooNetwork("NAFNet", TINY)
    )
    monkeypatch.setattr(zoo, "ENTRIES", {"tiny": entry})
    return entry


def test_without_a_hash_a_file_is_judged_by_its_network_and_its_hash_kept(server, unpinned, tmp_path, caplog):
    caplog.set_level(logging.INFO, "sam4ir")
    path = resolve("tiny", tmp_path)
    digest = hashlib.sha256(server.body).hexdigest()
    assert path.read_bytes() == server.body
    assert (tmp_path / "t.pth.sha256").read_text().splitlines()[0] == f"{digest}  t.pth"
    (message,) = caplog.messages
    for part in ("t.pth: no hash is published", "loads strictly into its network", digest, "t.pth.sha256"):
        assert part in message
    assert resolve("tiny", tmp_path) == path
    assert len(caplog.messages) == 1
    assert server.asked == [None]


def test_without_a_hash_a_file_is_compared_with_its_first_one(unpinned, tmp_path):
    path = resolve("tiny", tmp_path)
    path.write_bytes(checkpoint())  # fits as well, but is another file
    with pytest.raises(WeightsError, match=r"t.pth: sha256 is .* delete it"):
        resolve("tiny", tmp_path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (checkpoint(width=8), r"is not the NAFNet it should be: 60 of 61 tensors"),
        (checkpoint(middle_blk_num=2), r"is not the NAFNet it should be: 18 of 61 tensors"),
        (b"<html>a page that says nothing of its type</html>", r"no weights file"),
        (checkpoint()[:-2000], r"truncated or no weights file"),
    ],
    ids=["another width", "another depth", "page", "cut"],
)
def test_without_a_hash_another_file_is_refused_and_leaves_nothing(server, unpinned, body, message, tmp_path):
    server.body = body
    with pytest.raises(WeightsError, match=rf"t\.pth.*{message}.*it was removed"):
        resolve("tiny", tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".lock"]


def test_without_a_hash_a_file_put_there_by_hand_is_judged_once(server, unpinned, tmp_path):
    (tmp_path / "t.pth").write_bytes(checkpoint(width=8))
    with pytest.raises(WeightsError, match=r"is not the NAFNet it should be.*delete it or put the right one"):
        cached("tiny", tmp_path)
    (tmp_path / "t.pth").write_bytes(checkpoint("_orig_mod."))
    assert cached("tiny", tmp_path) == tmp_path / "t.pth"
    assert (tmp_path / "t.pth.sha256").is_file()
    assert server.asked == []


# --- SAM's checkpoints ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mobile_sam():
    """The bytes of a MobileSAM's checkpoint, with random weights."""
    buffer = io.BytesIO()
    torch.save(build_sam("mobile_sam").state_dict(), buffer)
    return buffer.getvalue()


def serve_sam(server, monkeypatch, body, kind="mobile_sam", sha256=None):
    """The zoo with one SAM called `kind`, served locally."""
    server.body = body
    source = Url(f"{server.address}/sam_{kind}_012345.pth", sha256, len(body) if sha256 else None)
    monkeypatch.setattr(zoo, "ENTRIES", {kind: Entry(kind, "a test", "none", (source,), "sam", sam=kind)})
    return source


def test_a_sam_whose_transfer_is_interrupted_is_resumed_checked_and_loaded(server, mobile_sam, monkeypatch, tmp_path):
    digest = hashlib.sha256(mobile_sam).hexdigest()
    source = serve_sam(server, monkeypatch, mobile_sam, sha256=digest)
    server.breaks = [30_000_000, 5_000_000]
    monkeypatch.setenv("SAM4IR_HOME", str(tmp_path))
    loaded = load_sam("mobile_sam")
    assert server.asked == [None, "bytes=30000000-", "bytes=35000000-"]
    assert (loaded.kind, loaded.name, loaded.sha256) == ("mobile_sam", "mobile_sam", digest)
    assert loaded.path == tmp_path / "weights" / source.file
    assert loaded.provenance["licence"] == "none"
    wanted = torch.load(io.BytesIO(mobile_sam), weights_only=True)
    assert all(torch.equal(value, wanted[key]) for key, value in loaded.sam.state_dict().items())
    assert load_sam("mobile_sam").sha256 == digest
    assert len(server.asked) == 3


@pytest.mark.slow
def test_a_vit_b_comes_from_the_server_and_loads(server, monkeypatch, tmp_path):
    sam = build_sam("vit_b")
    buffer = io.BytesIO()
    torch.save(sam.state_dict(), buffer)
    body = buffer.getvalue()
    serve_sam(server, monkeypatch, body, "vit_b", hashlib.sha256(body).hexdigest())
    server.breaks = [100_000_000]
    monkeypatch.setenv("SAM4IR_HOME", str(tmp_path))
    loaded = load_sam("vit_b")
    assert loaded.kind == "vit_b"
    assert server.asked == [None, "bytes=100000000-"]
    wanted = sam.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in loaded.sam.state_dict().items())


def test_a_sam_with_a_wrong_hash_is_refused_and_leaves_nothing(server, mobile_sam, monkeypatch, tmp_path):
    serve_sam(server, monkeypatch, mobile_sam, sha256="0" * 64)
    monkeypatch.setenv("SAM4IR_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"sam_mobile_sam_012345\.pth: the file that came .* expected 0000"):
        load_sam("mobile_sam")
    assert not [p for p in (tmp_path / "weights").iterdir() if p.suffix != ".lock"]


def test_without_a_network_a_sam_says_which_file_to_put_where(server, mobile_sam, monkeypatch, tmp_path):
    closed = Url("http://127.0.0.1:9/sam_vit_b_01ec64.pth", "ec2df627", 375042383)
    monkeypatch.setattr(zoo, "ENTRIES", {"vit_b": Entry("vit_b", "", "", (closed,), "sam", sam="vit_b")})
    monkeypatch.setenv("SAM4IR_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="refused") as caught:
        load_sam("vit_b")
    for part in (closed.url, "375,042,383 bytes", str(tmp_path / "weights" / "sam_vit_b_01ec64.pth")):
        assert part in str(caught.value)


def test_without_a_hash_a_sam_is_judged_by_its_shapes(server, mobile_sam, monkeypatch, tmp_path):
    source = serve_sam(server, monkeypatch, mobile_sam)
    assert resolve("mobile_sam", tmp_path) == tmp_path / source.file
    recorded = (tmp_path / f"{source.file}.sha256").read_text().split()[0]
    assert recorded == hashlib.sha256(mobile_sam).hexdigest()


def test_without_a_hash_another_kind_or_another_file_is_no_sam(server, mobile_sam, monkeypatch, tmp_path):
    serve_sam(server, monkeypatch, mobile_sam, "vit_b")
    with pytest.raises(WeightsError, match=r"is a SAM of kind mobile_sam, not the vit_b .* it was removed"):
        resolve("vit_b", tmp_path)
    for body, message in (
        (checkpoint(), r"holds no SAM of a known kind .* it was removed"),
        (b"<html>a page that says nothing of its type</html>", r"no weights file.* it was removed"),
        (mobile_sam[:-1000], r"truncated or no weights file.* it was removed"),
    ):
        source = serve_sam(server, monkeypatch, body, "mobile_sam")
        with pytest.raises(WeightsError, match=message):
            resolve("mobile_sam", tmp_path)
        assert not (tmp_path / source.file).exists()
