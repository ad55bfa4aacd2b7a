"""Joins stores that parts of one work filled: their shards become shards of one store."""

from collections.abc import Sequence
from pathlib import Path

from prod9.data.stores.manifest import LOCK, Manifest, shard_file
from prod9.errors import ConfigError
from prod9.files import atomic_write, exclusive, link_or_copy


def stored_keys(directory: Path) -> set[str]:
    """Return the keys of the volumes in a store whose shards are whole; none where there is no store."""
    return set(Manifest.read(directory).intact(directory).rows)


def merge_stores(directory: Path, sources: Sequence[Path]) -> None:
    """Take the shards of the stores ``sources`` into the one in ``directory``; the sources stay.

    Rows are listed in the order of ``sources``. Raises ConfigError for stores of another encoder or grid.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with exclusive(directory / LOCK):
        manifest = Manifest.read(directory).intact(directory)
        for source in sources:
            there = Manifest.read(source)
            manifest.made_for = manifest.made_for or there.made_for
            if there.made_for != manifest.made_for:
                raise ConfigError(
                    f"{source}: expected volumes of the autoencoder and data.grid of {directory}, "
                    f"{_shown(manifest)}, got {_shown(there)}; use another data.store_dir for them"
                )
            for shard, arrays in there.shards.items():
                if shard in manifest.shards:
                    continue
                for array in arrays:
                    with atomic_write(shard_file(directory, shard, array)) as temporary:
                        link_or_copy(shard_file(source, shard, array), temporary)
                manifest.shards[shard] = arrays
            new = {key: row for key, row in there.rows.items() if key not in manifest.rows}
            manifest.rows |= new
        manifest.write(directory)
        manifest.sweep(directory)  # what a merge that was killed left


def _shown(manifest: Manifest) -> str:
    encoder, _, grid = manifest.made_for.partition(" ")
    return f"{encoder[:12]}… {grid}"
