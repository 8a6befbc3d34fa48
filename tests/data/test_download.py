import http.server
import json
import threading
from pathlib import Path

import polars as pl
import pytest

from seqattn.data.catalog import load_dataset
from seqattn.data.download import fetch, types_sha256
from seqattn.data.tpp import EventPart, EventSet
from seqattn.errors import DataError

RECORDS = {
    split: [
        {
            "dim_process": 3,
            "seq_idx": i,
            "seq_len": 40,
            "time_since_start": [j * 0.5 + i for j in range(40)],
            "time_since_last_event": [0.5 if j else 0.0 for j in range(40)],
            "type_event": [(i + j + shift) % 3 for j in range(40)],
        }
        for i in range(30)
    ]
    for shift, split in enumerate(("train", "dev", "test"))
}
BODIES = {f"/{split}.json": json.dumps(records).encode() for split, records in RECORDS.items()}


class Server(http.server.ThreadingHTTPServer):
    """Serves the splits; can stop in the middle, ignore ranges, or answer with errors."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies = dict(BODIES)
        self.stop_after: list[int] = []
        self.errors: list[int] = []
        self.ignores_ranges = False
        self.asked: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address) -> None:
        """Stay silent when a client goes away."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append((self.path, wanted))
        if server.errors:
            self.send_error(server.errors.pop(0))
            return
        body = server.bodies.get(self.path)
        if body is None:
            self.send_error(404)
            return
        begin = (
            int(wanted.removeprefix("bytes=").removesuffix("-"))
            if wanted and not server.ignores_ranges
            else 0
        )
        if begin > len(body):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(body) - begin))
        self.end_headers()
        limit = server.stop_after.pop(0) if server.stop_after else None
        self.wfile.write(body[begin:] if limit is None else body[begin : begin + limit])

    def log_message(self, *args) -> None:
        """Write nothing."""


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.delenv("SEQATTN_DATA", raising=False)
    monkeypatch.setenv("SEQATTN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tpp"


def known(address: str, name: str = "toy", **changes) -> EventSet:
    parts = {}
    for split, records in RECORDS.items():
        types = pl.Series([kind for record in records for kind in record["type_event"]], dtype=pl.Int16)
        stated = {"sequences": 30, "events": 1200, "types_sha256": types_sha256(types), **changes}
        parts[split] = EventPart(url=f"{address}/{split}.json", **stated)
    return EventSet(
        name=name, title="Toy events", source="nowhere", licence="not stated", unit="1", types=3, parts=parts
    )


def left_over(cache: Path) -> list[str]:
    return (
        sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())
        if cache.exists()
        else []
    )


FILES = ["toy/dev.parquet", "toy/test.parquet", "toy/train.parquet"]


def check_content(folder: Path) -> None:
    for split, records in RECORDS.items():
        frame = pl.read_parquet(folder / f"{split}.parquet")
        assert frame.schema == {"seq_id": pl.Int32, "t": pl.Float64, "dt": pl.Float64, "k": pl.Int16}
        for record, (_, group) in zip(records, frame.group_by("seq_id", maintain_order=True), strict=True):
            assert group["t"].to_list() == record["time_since_start"]
            assert group["dt"].to_list() == record["time_since_last_event"]
            assert group["k"].to_list() == record["type_event"]


def test_a_download_is_converted_and_checked(server, cache):
    place = fetch(known(server.address))
    assert (place.path, place.origin) == (cache / "toy", "cache")
    check_content(place.path)
    assert left_over(cache) == FILES


def test_files_can_be_fetched_from_this_machine(tmp_path, cache):
    for name, body in BODIES.items():
        (tmp_path / name[1:]).write_bytes(body)
    check_content(fetch(known(tmp_path.as_uri())).path)
    assert left_over(cache) == FILES


def test_a_fetched_set_is_loaded_under_its_name(server, monkeypatch):
    from seqattn.data import catalog

    monkeypatch.setattr(catalog, "_read_index", lambda family: [known(server.address)] * (family == "tpp"))
    fetch("toy")
    data = load_dataset("toy", "dev")
    assert (len(data), data.n_events, data.n_types) == (30, 1200, 3)


def test_what_is_in_the_cache_is_not_asked_for_again(server):
    fetch(known(server.address))
    asked = len(server.asked)
    fetch(known(server.address))
    assert len(server.asked) == asked
    fetch(known(server.address), again=True)
    assert len(server.asked) == 2 * asked


def test_a_broken_connection_is_resumed_where_it_stopped(server):
    server.stop_after = [1000, 500]
    place = fetch(known(server.address))
    check_content(place.path)
    assert server.asked[:3] == [
        ("/train.json", None),
        ("/train.json", "bytes=1000-"),
        ("/train.json", "bytes=1500-"),
    ]


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(server, cache):
    server.stop_after = [1000, 500, 200]
    with pytest.raises(DataError, match=r"stopped after 1,700 bytes: .*call again to go on"):
        fetch(known(server.address))
    assert left_over(cache) == ["toy.part/train.json.part"]
    with pytest.raises(DataError, match="not on this machine"):
        load_dataset("taobao")
    check_content(fetch(known(server.address)).path)
    assert server.asked[3] == ("/train.json", "bytes=1700-")
    assert left_over(cache) == FILES


def test_finished_splits_are_kept_when_a_later_one_fails(server, cache):
    del server.bodies["/test.json"]
    with pytest.raises(DataError, match=r"test\.json failed: the server answered 404"):
        fetch(known(server.address))
    assert left_over(cache) == ["toy.part/dev.parquet", "toy.part/train.parquet"]
    server.bodies = dict(BODIES)
    asked = len(server.asked)
    check_content(fetch(known(server.address)).path)
    assert [path for path, _ in server.asked[asked:]] == ["/test.json"]


def test_a_server_without_ranges_sends_all_again(server):
    server.ignores_ranges = True
    server.stop_after = [1000]
    check_content(fetch(known(server.address)).path)
    assert server.asked[1] == ("/train.json", "bytes=1000-")


def test_a_part_that_is_too_long_is_begun_anew(server, cache):
    part = cache / "toy.part" / "train.json.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * (len(BODIES["/train.json"]) + 10))
    check_content(fetch(known(server.address)).path)


def test_a_busy_server_is_asked_again(server):
    server.errors = [503, 502]
    check_content(fetch(known(server.address)).path)


def test_an_absent_file_is_not_asked_for_again(server, cache):
    server.bodies = {}
    with pytest.raises(DataError, match="the server answered 404"):
        fetch(known(server.address))
    assert len(server.asked) == 1
    assert left_over(cache) == []
    assert not (cache / "toy.part").exists()


def test_a_server_that_is_not_there_is_reported(cache):
    with pytest.raises(DataError, match=r"train\.json failed: .*Check the network and call again"):
        fetch(known("http://127.0.0.1:9"))
    assert left_over(cache) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequences": 29}, "sequences is 30, not 29"),
        ({"events": 1}, "events is 1200, not 1"),
        ({"types_sha256": "0" * 64}, "types_sha256 is '.*', not '0000"),
    ],
)
def test_content_that_differs_from_the_catalogue_is_refused_and_removed(server, cache, changes, message):
    with pytest.raises(DataError, match=f"holds is not 'train' of 'toy': {message}.*was removed"):
        fetch(known(server.address, **changes))
    assert left_over(cache) == []
    assert not (cache / "toy").exists()


@pytest.mark.parametrize(
    "body",
    [
        b"<html>no</html>",
        b"[]",
        b'[{"a": 1}]',
        b'[{"time_since_start": [0.0], "time_since_last_event": [0.0, 1.0], "type_event": [0]}]',
        b'[{"time_since_start": ["x"], "time_since_last_event": [0.0], "type_event": [0]}]',
    ],
    ids=["a web page", "nothing", "other records", "unequal lists", "text for times"],
)
def test_content_of_another_form_is_refused_and_removed(server, cache, body):
    server.bodies["/train.json"] = body
    with pytest.raises(DataError, match=r"What .*train\.json holds is not 'train' of 'toy'"):
        fetch(known(server.address))
    assert left_over(cache) == []


def test_counts_that_are_not_known_are_not_checked(server):
    fetch(known(server.address, events=None, types_sha256=None))


def test_progress_is_told_in_bytes(server):
    told = []
    fetch(known(server.address), progress=lambda name, have, total: told.append((name, have, total)))
    for split in RECORDS:
        size = len(BODIES[f"/{split}.json"])
        assert [entry for entry in told if entry[0] == f"{split}.json"][-1] == (f"{split}.json", size, size)


def test_sets_without_a_location_say_where_to_get_them():
    with pytest.raises(
        DataError, match=r"No location to download 'bookorder'.*dunan/NeuralPointProcess.*SEQATTN_DATA"
    ):
        fetch("bookorder")


def test_other_schemes_are_refused():
    with pytest.raises(DataError, match="Locations begin with https, http, file"):
        fetch(known("ftp://example.org"))
