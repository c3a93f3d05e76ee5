"""Parameters of every kind: complex, of mixed dtypes, strided, views of one buffer, distributed; steps compiled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from tests.bridge.faces import (
    ROWS,
    STEPPED,
    Row,
    assert_near,
    assert_states_near,
    distance,
    every_row,
    gradients,
    parameters,
    step,
    trajectory,
)

STEPS = 12


def assert_as_torch(row: Row, kinds: Sequence[Tensor], grads: Sequence[Sequence[Tensor | None]]) -> None:
    """Parameters like these go where torch takes them, where they lie, and the state lies as torch's."""
    runs, states, strides = [], [], []
    for make in (row.ours, row.reference):
        params = [p.detach().clone().requires_grad_() for p in kinds]
        assert [p.stride() for p in params] == [p.stride() for p in kinds]
        places = [p.data_ptr() for p in params]
        optimizer = make(params, **row.options)
        laid = [
            [None if g is None else torch.empty_like(p).copy_(g) for p, g in zip(params, gs, strict=True)]
            for gs in grads
        ]
        runs.append(trajectory(row, optimizer, params, laid))
        states.append(optimizer.state_dict())
        assert [p.data_ptr() for p in params] == places
        strides.append(
            [x.stride() for entry in states[-1]["state"].values() for x in entry.values() if isinstance(x, Tensor)]
        )
    assert_near(*runs, row)
    assert_states_near(*states, row)
    assert strides[0] == strides[1]


@every_row([row for row in ROWS if row.info.supports_complex])
@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64], ids=["complex128", "complex64"])
def test_complex_parameters_agree_with_torch(row: Row, dtype: torch.dtype) -> None:
    row = row._replace(float64=row.tolerance(dtype.to_real()))
    kinds = parameters(row.shapes, dtype)
    runs = []
    for make in (row.ours, row.reference):
        params = [p.detach().clone().requires_grad_() for p in kinds]
        optimizer = make(params, **row.options)
        runs.append(trajectory(row, optimizer, params, gradients(row.shapes, dtype, STEPS)))
    assert_near(*runs, row)


@every_row(STEPPED)
def test_parameters_of_several_dtypes_in_one_group_agree_with_torch(row: Row) -> None:
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float32]
    kinds = [p.detach().to(d) for p, d in zip(parameters(row.shapes, torch.float64), dtypes, strict=True)]
    grads = [
        [None if g is None else g.to(d) for g, d in zip(gs, dtypes, strict=True)]
        for gs in gradients(row.shapes, torch.float64, STEPS)
    ]
    runs = []
    for make in (row.ours, row.reference):
        params = [p.clone().requires_grad_() for p in kinds]
        runs.append(trajectory(row, make(params, **row.options), params, grads))
    assert_near(*runs, row)


@every_row(STEPPED)
def test_transposed_parameters_agree_with_torch_and_keep_their_strides(row: Row) -> None:
    kinds = [p.detach().t() for p in parameters(((4, 3), (3, 5)), torch.float64)]
    assert_as_torch(row, kinds, gradients(((3, 4), (5, 3)), torch.float64, STEPS))


@every_row([row for row in STEPPED if () in row.shapes])
def test_channels_last_parameters_agree_with_torch_and_keep_their_strides(row: Row) -> None:
    shapes = ((2, 3, 2, 2), (4, 2, 3, 3))
    kinds = [p.detach().to(memory_format=torch.channels_last) for p in parameters(shapes, torch.float64)]
    assert_as_torch(row, kinds, gradients(shapes, torch.float64, STEPS))


@every_row()
def test_parameters_that_are_views_of_one_buffer_are_written_where_they_lie(row: Row) -> None:
    apart = parameters(row.shapes, torch.float64)
    sizes = [p.numel() for p in apart]
    buffer = torch.cat([p.detach().reshape(-1) for p in apart])
    views = [x.view(p.shape).requires_grad_() for x, p in zip(buffer.split(sizes), apart, strict=True)]
    grads = gradients(row.shapes, torch.float64, STEPS)
    trajectory(row, row.ours(views, **row.options), views, grads)
    trajectory(row, row.ours(apart, **row.options), apart, grads)
    assert torch.equal(buffer, torch.cat([p.detach().reshape(-1) for p in apart]))


@every_row(STEPPED)
def test_a_compiled_step_gives_the_numbers_of_the_eager_one(row: Row) -> None:
    grads = gradients(row.shapes, torch.float64, 4)
    runs = []
    for compiled in (True, False):
        params = parameters(row.shapes, torch.float64)
        optimizer = row.ours(params, **row.options)
        act = torch.compile(lambda o=optimizer: o.step(), backend="aot_eager") if compiled else optimizer.step
        runs.append([])
        for g in grads:
            for p, x in zip(params, g, strict=True):
                p.grad = x
            act()
            runs[-1].append([p.detach().clone() for p in params])
    assert_near(*runs, row)


@every_row(STEPPED)
def test_sparse_gradients_are_refused(row: Row) -> None:
    params = parameters(((4, 3), (3, 3)), torch.float64)
    optimizer = row.ours(params)
    before = [p.detach().clone() for p in params]
    params[0].grad = torch.ones_like(params[0])
    params[1].grad = torch.eye(3, dtype=torch.float64).to_sparse()
    with pytest.raises(RuntimeError, match=rf"^{row.name} does not support sparse gradients.*'?1'?.*; hint: "):
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def distributed(x: Tensor | None, mesh: DeviceMesh) -> Tensor | None:
    if x is None:
        return None
    return distribute_tensor(x.detach().clone(), mesh, [Shard(0) if x.dim() else Replicate()])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@every_row(STEPPED)
def test_distributed_parameters_agree_with_plain_ones(row: Row, mesh: DeviceMesh) -> None:
    plain = parameters(row.shapes, torch.float64)
    apart = [distributed(p, mesh).requires_grad_() for p in plain]
    optimizers = [row.ours(params, **row.options) for params in (plain, apart)]
    for g in gradients(row.shapes, torch.float64, 5):
        step(row, optimizers[0], plain, g)
        step(row, optimizers[1], apart, [distributed(x, mesh) for x in g])
    for p, q in zip(plain, apart, strict=True):
        assert isinstance(q, DTensor)
        assert distance(q.full_tensor(), p) <= row.float64
    moments = [x for entry in optimizers[1].state_dict()["state"].values() for x in entry.values() if x.dim()]
    assert moments
    assert all(isinstance(x, DTensor) for x in moments)
