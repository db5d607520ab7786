"""What is refused, and with which advice."""

import pytest
import torch
from surf.surf_core.checks import check_choice, check_latent, check_range


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 16, 1, 1), (2, 4, 7, 5), (1, 16, 1, 9, 3), (2, 48, 5, 1, 1)])
def test_check_latent_takes_images_and_videos(shape, dtype):
    check_latent(torch.zeros(shape, dtype=dtype), "latent", channels=shape[1])


@pytest.mark.parametrize(
    ("latent", "expected"),
    [
        ([[1.0]], "one tensor, got list"),
        (torch.zeros(3, 4, 5), "pass a latent"),
        (torch.zeros(1, 1, 2, 2, 2, 2), "pass a latent"),
        (torch.zeros(1, 16, 2, 2, dtype=torch.int64), "int64; convert"),
        (torch.zeros(1, 16, 0, 2), "at least one cell"),
        (torch.zeros(1, 4, 2, 2), "16 channels, got 4"),
        (torch.full((1, 16, 2, 2), torch.nan), "must be finite"),
        (torch.full((1, 16, 1, 2, 2), -torch.inf), "must be finite"),
    ],
    ids=["list", "3-D", "6-D", "integers", "empty", "channels", "nan", "infinity"],
)
def test_check_latent_rejects_what_is_no_latent_by_name(latent, expected):
    with pytest.raises(ValueError, match=expected) as error:
        check_latent(latent, "Surf Refiner: latent", channels=16)
    assert str(error.value).startswith("Surf Refiner: latent")


def test_check_range_takes_both_ends():
    check_range(0.0, "sigma", 0.0, 1.0, "use 0.65")
    check_range(1, "sigma", 0.0, 1.0, "use 0.65")


@pytest.mark.parametrize("value", [-0.001, 1.001, float("nan"), float("inf")])
def test_check_range_rejects_the_rest_with_advice(value):
    with pytest.raises(ValueError, match=r"sigma must lie within 0.0 to 1.0, got .*; use 0.65\."):
        check_range(value, "sigma", 0.0, 1.0, "use 0.65")


def test_check_choice_names_the_choices():
    check_choice("b", "method", ("a", "b"))
    with pytest.raises(ValueError, match="method must be one of a, b, got 'c'"):
        check_choice("c", "method", ("a", "b"))
