import itertools

import numpy as np
import pytest
import torch

from sam4ir.data.loader import SampleStream, eval_samples, train_batches
from sam4ir.data.sample import Sample, collate
from sam4ir.utils.image import ImageError


class Numbers:
    """Ten images; a sample tells its index, and the first numbers of its stream."""

    def __init__(self, broken=None):
        self.broken = broken

    def __len__(self):
        return 10

    def key(self, index):
        return f"image{index}"

    def get(self, index, rng):
        if index == self.broken:
            raise ImageError(f"folder/image{index}.png: truncated PNG")
        drawn = torch.from_numpy(rng.random((3, 2, 2), dtype=np.float32))
        regions = torch.arange(4).view(2, 2) * (index % 3)
        return Sample(self.key(index), drawn, drawn + index, regions, regions[None].float())


def stream(**arguments):
    options = {"seed": 1, "batch_size": 4, "total_samples": 48} | arguments
    return list(train_batches(Numbers(), **options))


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.keys, one.numbers, one.region_count) == (other.keys, other.numbers, other.region_count)
        for field in ("lq", "gt", "regions", "spe"):
            assert torch.equal(getattr(one, field), getattr(other, field))


def test_stream_does_not_depend_on_workers():
    assert_same(stream(), stream(num_workers=2))


def test_stream_goes_on_where_it_stopped():
    assert_same(stream()[5:], stream(start_sample=20))


def test_ranks_share_the_batches_of_one():
    ranks = [stream(rank=r, world_size=2) for r in range(2)]
    for whole, *parts in zip(stream(), *ranks, strict=True):
        assert whole.numbers == parts[0].numbers + parts[1].numbers
        assert whole.keys == parts[0].keys + parts[1].keys
        assert torch.equal(whole.lq, torch.cat([p.lq for p in parts]))


def test_batch_size_does_not_change_the_samples():
    assert torch.equal(torch.cat([b.lq for b in stream()]), torch.cat([b.lq for b in stream(batch_size=12)]))


def test_every_epoch_takes_every_image_once_in_its_own_order():
    keys = list(itertools.chain(*(b.keys for b in stream(batch_size=10, total_samples=30))))
    epochs = [keys[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(e) == [f"image{i}" for i in range(10)] for e in epochs)
    assert len({tuple(e) for e in epochs}) == 3
    assert stream(shuffle=False, batch_size=12, total_samples=12)[0].keys == [f"image{i % 10}" for i in range(12)]


def test_an_enlarged_epoch_takes_every_image_as_often():
    numbers = SampleStream(Numbers(), seed=0, enlarge=3)
    drawn = [numbers.index(s) for s in range(numbers.epoch_length)]
    assert np.bincount(drawn).tolist() == [3] * 10
    assert sorted(drawn[:10]) != list(range(10))


def test_seeds_give_other_streams():
    assert not torch.equal(stream(seed=1)[0].lq, stream(seed=2)[0].lq)


def test_global_random_streams_are_left_alone():
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    stream()
    stream(num_workers=1, total_samples=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


@pytest.mark.parametrize("num_workers", [0, 2])
def test_errors_arrive_with_their_own_message(num_workers):
    batches = train_batches(Numbers(broken=7), seed=0, batch_size=5, total_samples=10, num_workers=num_workers)
    with pytest.raises(ImageError) as caught:
        list(batches)
    assert str(caught.value) == "folder/image7.png: truncated PNG"


def test_numbers_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match=r"batch_size: 4.*3 ranks"):
        stream(world_size=3)
    with pytest.raises(ValueError, match="samples 2 to 48"):
        stream(start_sample=2)


def test_validation_depends_on_the_key_only_and_is_shared_by_ranks():
    whole = list(eval_samples(Numbers(), seed=3))
    assert [s.key for s in whole] == [f"image{i}" for i in range(10)]
    for ranks, workers in ((1, 2), (3, 0)):
        parts = [list(eval_samples(Numbers(), 3, r, ranks, workers)) for r in range(ranks)]
        got = {s.key: s for part in parts for s in part}
        assert all(torch.equal(got[s.key].lq, s.lq) for s in whole)


def test_a_batch_counts_the_regions_of_its_richest_image():
    samples = [Numbers().get(i, np.random.default_rng(i)) for i in (0, 1, 2)]
    batch = collate(samples, [7, 8, 9])
    assert (batch.region_count, batch.numbers, batch.regions.shape) == (6, [7, 8, 9], (3, 2, 2))
    assert batch.to("meta").gt.device.type == "meta"
    assert collate([Sample("a", torch.zeros(3, 2, 2), torch.zeros(3, 2, 2))]).region_count == 0


def test_samples_that_do_not_stack_are_named():
    samples = [Sample(k, torch.zeros(3, n, 2), torch.zeros(3, n, 2)) for k, n in (("a", 2), ("b", 3))]
    with pytest.raises(ValueError, match=r"lq is \(3, 2, 2\) for a, \(3, 3, 2\) for b; set gt_size"):
        collate(samples)
