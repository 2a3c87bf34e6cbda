"""A frozen backbone encodes each tile once; its features do not depend on earlier requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from wsi_ats.errors import ModelError, SlideReadError
from wsi_ats.geometry import Grid
from wsi_ats.models.batches import TileReader
from wsi_ats.models.frozen import FrozenFeatures, fingerprint
from wsi_ats.nn.encoder import TileEncoder, build_encoder
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.memory import MemorySlide

torch.set_num_threads(1)  # tiny networks: on busy cores, threads would only wait for one another

GRID = Grid(32 * 6, 64, cell=32, tile_size=32)
ONE, OTHER, DAMAGED = (SlideRef(name, name, name) for name in ("one", "other", "damaged"))


def slide_of(ref: SlideRef) -> MemorySlide:
    pixels = np.random.default_rng(len(ref.id)).integers(0, 255, (64, 32 * 6, 3), dtype=np.uint8)
    return MemorySlide([pixels], mpp=0.5, path=ref.id)


class Recorded(TileReader):
    """Keeps which cells of which slides were read; one of the slides cannot be."""

    def __init__(self) -> None:
        super().__init__(1, self._open)
        self.asked: list[tuple[str, list[int]]] = []

    def _open(self, ref: SlideRef) -> MemorySlide:
        if ref == DAMAGED:
            raise SlideReadError(ref.path, "tile 3 is damaged")
        return slide_of(ref)

    def run(self, jobs):
        self.asked += [(ref.id, job.keywords["cells"].tolist()) for ref, job in jobs]
        return super().run(jobs)


def encoder(seed: int = 0) -> TileEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = build_encoder("test_resnet", pretrained=False, size=32)
    made.freeze()
    return made


def frozen(inner: TileReader, network: TileEncoder, folder: Path) -> FrozenFeatures:
    return FrozenFeatures(inner, network, folder, device=torch.device("cpu"), precision="float32")


def ask(reader: FrozenFeatures, *wanted: tuple[SlideRef, list[int]]) -> list[np.ndarray]:
    return [each.result() for each in reader.read([(ref, GRID, np.array(cells)) for ref, cells in wanted])]


def raw(network: TileEncoder, ref: SlideRef, cells: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return network.raw(torch.from_numpy(read_tiles(slide_of(ref), GRID, np.array(cells))))


def test_features_are_those_of_the_backbone_and_each_tile_is_read_once(tmp_path):
    network = encoder()
    with Recorded() as inner, frozen(inner, network, tmp_path) as reader:
        one, other = ask(reader, (ONE, [5, 0, 3]), (OTHER, [1]))
        assert one.dtype == np.float32
        torch.testing.assert_close(torch.from_numpy(one), raw(network, ONE, [5, 0, 3]))
        torch.testing.assert_close(torch.from_numpy(other), raw(network, OTHER, [1]))
        [again] = ask(reader, (ONE, [3, 7, 5, 11]))
        torch.testing.assert_close(torch.from_numpy(again), raw(network, ONE, [3, 7, 5, 11]))
        assert np.array_equal(again[[0, 2]], one[[2, 0]])
        [known] = ask(reader, (ONE, [11, 7]))
        assert np.array_equal(known, again[[3, 1]])
        assert inner.asked == [("one", [5, 0, 3]), ("other", [1]), ("one", [7, 11])]
        assert (reader.take_count(), reader.take_count()) == (6, 0)


def test_a_feature_does_not_depend_on_other_tiles_requested(tmp_path):
    network = encoder()
    with Recorded() as inner:
        with frozen(inner, network, tmp_path / "all") as reader:
            [together] = ask(reader, (ONE, list(range(12))))
        for name, parts in {
            "one by one": [[cell] for cell in range(12)],
            "mixed": [[4, 9], [9, 2, 0, 4, 7]],
        }.items():
            with frozen(inner, network, tmp_path / name) as reader:
                for cells in parts:
                    [found] = ask(reader, (ONE, cells))
                    assert np.array_equal(found, together[cells])


def test_features_of_an_earlier_run_are_reused_and_those_of_another_backbone_are_not(tmp_path):
    with Recorded() as inner:
        with frozen(inner, encoder(), tmp_path) as reader:
            [first] = ask(reader, (ONE, [0, 1]))
        with frozen(inner, encoder(), tmp_path) as reader:
            [again] = ask(reader, (ONE, [1, 2]))
            assert np.array_equal(again[0], first[1])
            assert reader.take_count() == 1
        with frozen(inner, encoder(seed=1), tmp_path) as reader:
            [other] = ask(reader, (ONE, [0, 1]))
            assert not np.allclose(other, first)
    assert inner.asked == [("one", [0, 1]), ("one", [2]), ("one", [0, 1])]


def test_the_fingerprint_covers_only_weights_and_statistics_of_the_backbone():
    network = encoder()
    known = {fingerprint(network.network)}
    network.centre.add_(0.1)  # measured on features, and applied to them later
    assert fingerprint(network.network) in known
    assert fingerprint(encoder().network) in known
    with torch.no_grad():
        next(network.network.parameters())[0] += 1e-6
    assert fingerprint(network.network) not in known
    known.add(fingerprint(network.network))
    next(each for name, each in network.network.named_buffers() if "running_mean" in name).add_(1e-3)
    assert fingerprint(network.network) not in known
    assert fingerprint(encoder(seed=1).network) not in known


def test_a_slide_that_cannot_be_read_leaves_the_others_alone(tmp_path):
    network = encoder()
    with Recorded() as inner, frozen(inner, network, tmp_path) as reader:
        one, damaged, other = reader.read([(ref, GRID, np.array([2, 3])) for ref in (ONE, DAMAGED, OTHER)])
        with pytest.raises(SlideReadError, match="damaged: tile 3 is damaged"):
            damaged.result()
        for ref, each in ((ONE, one), (OTHER, other)):
            torch.testing.assert_close(torch.from_numpy(each.result()), raw(network, ref, [2, 3]))
        assert reader.take_count() == 4


def test_the_same_tiles_wanted_twice_before_any_is_there(tmp_path):
    with Recorded() as inner, frozen(inner, encoder(), tmp_path) as reader:
        first, second = (reader.read([(ONE, GRID, np.array(cells))])[0] for cells in ([1, 2], [2, 3]))
        assert np.array_equal(second.result()[0], first.result()[1])


def test_features_deleted_during_a_run_are_an_error(tmp_path):
    with Recorded() as inner, frozen(inner, encoder(), tmp_path) as reader:
        ask(reader, (ONE, [1, 2]))
        [pending] = reader.read([(ONE, GRID, np.array([1, 2]))])
        [path] = tmp_path.iterdir()
        path.unlink()
        with pytest.raises(ModelError, match=rf"{path.name} lost features while it was in use"):
            pending.result()


def test_jobs_other_than_tiles_go_to_the_inner_reader(tmp_path):
    with TileReader(1, slide_of) as inner, frozen(inner, encoder(), tmp_path) as reader:
        [found] = reader.run([(ONE, lambda slide: slide.path)])
        assert found.result() == "one"
        assert reader.take_count() == 0
