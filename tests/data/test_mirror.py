"""Datasets at a URL: through a verified cache, over a network that fails."""

import multiprocessing
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import pytest
from faulty_server import FaultyServer
from token_folders import flip, ids_of, key_of, make_dataset, make_features, tar_of

from megavrc.data.dataset import TokenDataset
from megavrc.data.mirror import FetchError, Mirror, NetworkError, is_remote
from megavrc.data.order import Order, WindowOrder
from megavrc.data.stream import Stream
from megavrc.data.text_features import TextFeatures
from megavrc.errors import UserError
from megavrc.model import ConditionConfig
from megavrc.training.tasks.tokens import open_training
from megavrc.training.tasks.vrc_config import TokenDataConfig

pytest.importorskip("aiohttp", reason="fsspec needs it for http")

COUNTS = (7, 0, 4)
GB = 10**9


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    make_dataset(tmp_path / "tokens", COUNTS)
    with FaultyServer(tmp_path / "tokens") as running:
        yield running


@pytest.fixture
def mirror(server: FaultyServer, tmp_path: Path) -> Mirror:
    return Mirror.of(server.url, tmp_path / "cache", GB, wait=0.001)


def keys(dataset: TokenDataset) -> list[str]:
    return [dataset[index]["key"] for index in range(len(dataset))]


ALL = [key_of(number) for number in range(11)]


def cached(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("*.tar")}


def test_addresses() -> None:
    assert is_remote("s3://bucket/tokens/video") and is_remote("http://host/x")
    assert not is_remote("tokens/video") and not is_remote(Path("/data/video"))


def test_any_file_system(tmp_path: Path) -> None:
    make_dataset(tmp_path / "tokens", COUNTS)
    fsspec.filesystem("memory").put(str(tmp_path / "tokens"), "/bucket/tokens", recursive=True)
    remote = TokenDataset(Mirror.of("memory://bucket/tokens", tmp_path / "cache", GB))
    here = TokenDataset(tmp_path / "tokens")
    assert remote.manifest_id == here.manifest_id and remote.address == "memory://bucket/tokens"
    for index in range(11):
        assert remote[index]["key"] == here[index]["key"]
        assert (remote[index]["ids"].numpy() == ids_of(index)).all()


def test_only_what_is_read_is_fetched_and_only_once(mirror: Mirror, server: FaultyServer) -> None:
    dataset = TokenDataset(mirror)
    dataset[8]
    assert {name for name in server.requests if name.endswith(".tar")} == {tar_of(Path(), 2).name}
    assert keys(dataset) == keys(TokenDataset(mirror)) == ALL
    assert max(count for name, count in server.requests.items() if ".tar" in name) == 1


def test_what_was_fetched_needs_no_network(
    mirror: Mirror, server: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    keys(TokenDataset(mirror))
    server.stop()
    assert keys(TokenDataset(mirror)) == ALL
    assert "using the copy of last time" in caplog.text


@pytest.mark.parametrize("fault", ["drop", "wrong", "busy"])
def test_failures_are_tried_again(
    mirror: Mirror, server: FaultyServer, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (tar_of(Path()).name, tar_of(Path(), 2).name + ".idx.npz"):
        server.faults[name].extend([fault] * 3)
    assert keys(TokenDataset(mirror)) == ALL
    assert caplog.text.count("trying again") == 6


@pytest.mark.parametrize(
    ("fault", "words"), [("drop", "ClientPayloadError"), ("wrong", "sha256 is"), ("busy", "503")]
)
def test_failures_that_stay_end_it_with_the_address(
    mirror: Mirror, server: FaultyServer, fault: str, words: str
) -> None:
    name = tar_of(Path()).name
    server.faults[name].extend([fault] * 99)
    with pytest.raises(NetworkError, match=rf"{server.url}/shards/{name}: .*{words}.*\(attempt 9\)"):
        TokenDataset(mirror)[0]
    assert server.requests[name] == 9
    assert cached(mirror.cache) == set() and not list(mirror.cache.rglob("*.part"))


def test_what_does_not_exist_is_not_tried_again(mirror: Mirror, server: FaultyServer, tmp_path: Path) -> None:
    tar_of(tmp_path / "tokens").unlink()
    for address, words in (
        (mirror, r"\.tar: FileNotFoundError"),
        (mirror.child("no"), "/no/manifest.json: File"),
    ):
        with pytest.raises(FetchError, match=words) as caught:
            TokenDataset(address)[0]
        assert not isinstance(caught.value, NetworkError), "running again does not mend it"
    assert server.requests["manifest.json"] == 2 and server.requests[tar_of(Path()).name] == 1
    with pytest.raises(UserError, match=r"data.path: nothing://x: .*nothing"):
        Mirror.of("nothing://x", tmp_path, GB)


def test_a_failing_network_is_no_damaged_sample(mirror: Mirror, server: FaultyServer) -> None:
    """Replacing it would make the order depend on the weather."""
    server.faults[tar_of(Path()).name].extend(["drop"] * 99)
    dataset = TokenDataset(mirror, strict=False)
    stream = Stream(dataset, Order(11, 0), global_batch=11, micro_batch=11, collate=list, max_damaged=99)
    with pytest.raises(NetworkError):
        next(iter(stream))


def test_the_least_recently_used_shards_go(server: FaultyServer, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "tokens" / "many", (4, 4, 4, 4))
    size = tar_of(folder, 0, 4).stat().st_size
    mirror = Mirror.of(f"{server.url}/many", tmp_path / "cache", 3 * size)
    names = [tar_of(folder, number, 4).name for number in range(4)]
    for index in (0, 4, 8):
        TokenDataset(mirror)[index]
    TokenDataset(mirror)[0]  # now the second is the one that was not used for longest
    open_all_the_time = TokenDataset(mirror)
    open_all_the_time[4]
    TokenDataset(mirror)[0]
    TokenDataset(mirror)[8]
    TokenDataset(mirror)[12]
    assert cached(mirror.cache) == {names[0], names[2], names[3]}
    assert open_all_the_time[5]["key"] == key_of(5), "dropped, but still open"
    assert keys(TokenDataset(mirror)) == [key_of(number) for number in range(16)]
    assert len(cached(mirror.cache)) == 3
    with pytest.raises(FetchError, match="do not fit the cache"):
        TokenDataset(Mirror.of(f"{server.url}/many", tmp_path / "small", size - 1))[0]


def test_local_datasets_inside_the_cache_folder_stay(server: FaultyServer, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "cache" / "mine", COUNTS)
    size = sum(tar.stat().st_size for tar in (folder / "shards").glob("*.tar"))
    keys(TokenDataset(Mirror.of(server.url, tmp_path / "cache", size)))
    assert keys(TokenDataset(folder)) == ALL


def test_a_damaged_copy_is_fetched_again(mirror: Mirror, server: FaultyServer) -> None:
    assert keys(TokenDataset(mirror)) == ALL
    [copy] = mirror.cache.rglob(tar_of(Path()).name)
    for offset in range(0, copy.stat().st_size, 100):
        flip(copy, offset)
    assert keys(TokenDataset(mirror)) == ALL
    assert server.requests[copy.name] == 2
    [index] = mirror.cache.rglob(tar_of(Path(), 2).name + ".idx.npz")
    flip(index, 300)
    assert keys(TokenDataset(mirror)) == ALL
    assert server.requests[index.name] == 2


def test_a_part_of_a_killed_process_does_not_matter(mirror: Mirror) -> None:
    dataset = TokenDataset(mirror)
    part = dataset._path(0).with_name(dataset._path(0).name + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"rubbish" * 10_000)
    assert keys(dataset) == ALL and not part.exists()


def test_another_dataset_at_the_same_address(mirror: Mirror, tmp_path: Path) -> None:
    before = TokenDataset(mirror)
    keys(before)
    make_dataset(tmp_path / "tokens", COUNTS, first=100)
    after = TokenDataset(mirror)
    assert keys(after) == [key_of(100 + number) for number in range(11)]
    assert after.manifest_id != before.manifest_id and keys(before) == ALL


def test_text_features_come_through_the_cache_too(
    server: FaultyServer, mirror: Mirror, tmp_path: Path
) -> None:
    make_features(TokenDataset(tmp_path / "tokens"))
    features = TextFeatures(TokenDataset(mirror))
    assert [int(features[index][0, 0]) for index in (8, 0, 10)] == [8, 0, 10]
    assert len(cached(mirror.cache)) == 2


def read_all(mirror: Mirror, results: Any) -> None:
    results.put(keys(TokenDataset(mirror)))


def test_processes_share_a_cache(mirror: Mirror, server: FaultyServer) -> None:
    server.faults[tar_of(Path()).name].append("drop")
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=read_all, args=(mirror, results)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [ALL] * 4
    for process in processes:
        process.join()
    assert {count for name, count in server.requests.items() if name.endswith(".tar")} == {1, 2}


def slow_reader(mirror: Mirror) -> None:
    TokenDataset(mirror)[0]


def test_a_process_killed_while_it_fetches_blocks_nobody(mirror: Mirror, server: FaultyServer) -> None:
    server.faults[tar_of(Path()).name].extend(["busy"] * 4)
    patient = Mirror.of(mirror.url, mirror.cache, GB, wait=30.0)
    process = multiprocessing.get_context("fork").Process(target=slow_reader, args=(patient,))
    process.start()
    deadline = time.monotonic() + 30
    while not server.requests[tar_of(Path()).name]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()  # it waits for its next try
    process.join()
    server.faults.clear()
    assert keys(TokenDataset(mirror)) == ALL


def test_workers_read_through_the_cache(mirror: Mirror) -> None:
    """After this process has used fsspec itself, whose threads do not survive the fork."""
    dataset = TokenDataset(mirror)
    order = WindowOrder([shard["count"] for shard in dataset.shards], 0, window=1)
    stream = Stream(
        dataset,
        order,
        global_batch=11,
        micro_batch=11,
        workers=2,
        collate=lambda items: sorted(item["key"] for item in items),
    )
    batches = iter(stream)
    assert list(islice(batches, 3)) == [ALL] * 3
    batches.close()


def test_a_cache_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data.cache_dir: .*file: "):
        Mirror.of("memory://x/y", tmp_path / "file", GB)


def test_text_features_count_among_what_the_cache_must_hold(tmp_path: Path) -> None:
    tokens = make_dataset(tmp_path / "tokens")
    features = make_features(TokenDataset(tokens))
    size, more = (
        sum(tar.stat().st_size for tar in (folder / "shards").glob("*.tar")) for folder in (tokens, features)
    )
    condition = ConditionConfig(text="features", feature_dim=3)

    def open_with(bytes: float, condition: ConditionConfig) -> None:
        data = TokenDataConfig(tokens.as_uri(), cache_dir=str(tmp_path / "cache"), cache_gb=bytes / 1e9)
        open_training(data, 0, condition)

    open_with(size + 1, ConditionConfig(vocab=8))
    open_with(size + more + 1, condition)
    with pytest.raises(UserError, match=r"data.cache_gb: .* shuffle global uses at once"):
        open_with(size + more / 2, condition)
