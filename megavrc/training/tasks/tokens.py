"""The token datasets of a run, opened as the configuration says: one or a blend, here or at a URL, in what order."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megavrc.data.blend import BlendOrder, TokenBlend, check_same_kind
from megavrc.data.dataset import ShardReader, TokenDataset
from megavrc.data.mirror import Mirror, is_remote
from megavrc.data.order import InOrder, Order, SampleOrder, WindowOrder
from megavrc.data.shards import PROOF
from megavrc.distributed import seed_for
from megavrc.errors import UserError
from megavrc.model import ConditionConfig
from megavrc.training.tasks.base import Samples
from megavrc.training.tasks.vrc_config import BlendPart, TokenDataConfig, ValidationDataConfig

log = logging.getLogger("megavrc")


def open_training(
    config: TokenDataConfig, seed: int, condition: ConditionConfig, tokenizer_sha256: str | None = None
) -> tuple[TokenBlend, SampleOrder]:
    """Samples to train on, and their order.

    Args:
        config: which, and how shuffled.
        seed: of the run.
        condition: of the model: whether samples have text features, and parts of a blend must agree in classes.
        tokenizer_sha256: refuse shards that were made by another tokenizer.

    Raises:
        UserError: a dataset is unfinished, unreachable or does not fit the others; the cache is too small.
    """
    source = _open(config, config, tokenizer_sha256, condition)
    _check_cache(config, source.readers)
    orders = [
        _order(config, part, seed_for(seed, "order", *([number] if number else [])))
        for number, part in enumerate(source.parts)
    ]
    return source, BlendOrder(orders, [part.weight for part in _parts(config)])


def open_validation(
    config: TokenDataConfig, training: TokenBlend, condition: ConditionConfig
) -> dict[str, Samples]:
    """Each set of `data.validation`: samples to evaluate on, in the order that they lie in, and how many.

    Args:
        config, condition: as for `open_training`.
        training: samples that are trained on.

    Raises:
        UserError: as `open_training`; a set of another kind, shape, tokenizer or classes, or with features of another
            encoder.
    """
    sets, seen = {}, [part.identity for part in training.parts]
    for name, chosen in config.validation.items():
        if not chosen.path and not chosen.blend:
            chosen = replace(chosen, path=config.path, blend=config.blend)
        source, key = _open(config, chosen, None, condition), f"data.validation.{name}"
        check_same_kind(key, training, source, *["classes"] * condition.is_class)
        if known := [part.address for part in source.parts if part.identity in seen]:
            log.warning(
                "%s: split %s of %s is trained on; its loss says nothing of other clips",
                key,
                chosen.split,
                known[0],
            )
        if source.text_encoder != training.text_encoder:
            raise UserError(f"{key}: its text features were made by another encoder")
        orders = [InOrder(len(part)) for part in source.parts]
        weights = [part.weight for part in _parts(chosen)]
        count = min(chosen.samples, len(source))
        sets[name] = Samples(source, BlendOrder(orders, weights), count, [source.identity, weights])
    return sets


def order_identity(config: TokenDataConfig) -> dict[str, Any]:
    """The part of the order's identity besides the datasets and the seed."""
    return {
        "shuffle": config.shuffle,
        "window": config.window if config.shuffle == "window" else None,
        "weights": [part.weight for part in _parts(config)],
    }


def _parts(config: TokenDataConfig | ValidationDataConfig) -> list[BlendPart]:
    return config.blend or [BlendPart(config.path)]


def _open(
    config: TokenDataConfig,
    chosen: TokenDataConfig | ValidationDataConfig,
    tokenizer_sha256: str | None,
    condition: ConditionConfig,
) -> TokenBlend:
    strict = config.on_damage == "fail"
    folders = [_folder(part.path, config) for part in _parts(chosen)]
    datasets = [TokenDataset(folder, tokenizer_sha256, chosen.split, strict) for folder in folders]
    for dataset in datasets:
        if why := (dataset.info.get(PROOF) or {}).get("not_done"):
            log.warning("%s: its ids were not compared with its videos: %s", dataset.address, why)
    return TokenBlend(datasets, condition.features, condition.is_class)


def _folder(path: str, config: TokenDataConfig) -> str | Mirror:
    if not is_remote(path):
        return path
    return Mirror.of(path, Path(config.cache_dir).expanduser(), int(config.cache_gb * 1e9))


def _check_cache(config: TokenDataConfig, readers: Sequence[ShardReader]) -> None:
    """Every sample would be a download if the shards in use together did not fit the cache."""
    sizes = [sorted(shard["bytes"] for shard in reader.shards) for reader in readers if reader.mirror]
    in_use = sum(sum(each[-config.window :] if config.shuffle == "window" else each) for each in sizes)
    if in_use > config.cache_gb * 1e9:
        raise UserError(
            f"data.cache_gb: {config.cache_gb} is less than the {in_use / 1e9:.1f} GB of shards that shuffle "
            f"{config.shuffle} uses at once; raise it"
            + (", or use data.shuffle: window" if config.shuffle == "global" else ", or lower data.window")
        )


def _order(config: TokenDataConfig, part: TokenDataset, seed: int) -> SampleOrder:
    if config.shuffle == "global":
        return Order(len(part), seed)
    return WindowOrder([shard["count"] for shard in part.shards], seed, config.window)
