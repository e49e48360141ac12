"""A shared copy has its own modules over the same tensors."""

import torch
from torch import nn

from latent_diffusion.families import tiny
from latent_diffusion.models.unet import UNet
from latent_diffusion.nn.shared_copy import shared_copy


def test_every_tensor_is_the_same_object_and_every_module_a_new_one():
    net = UNet(tiny.UNET)
    twin = shared_copy(net)
    assert type(twin) is UNet
    assert twin.config is net.config
    ours, theirs = dict(net.named_parameters()), dict(twin.named_parameters())
    assert list(ours) == list(theirs)
    assert all(ours[name] is theirs[name] for name in ours)
    assert not set(net.modules()) & set(twin.modules())


def test_a_replaced_parameter_field_or_hook_stays_in_the_copy():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    twin = shared_copy(net)
    before = net[0].weight
    twin[0].weight = nn.Parameter(torch.zeros(2, 2))
    twin[0].register_forward_hook(lambda *_: None)
    twin.eval()
    twin[1].running_mean = torch.ones(2)
    assert net[0].weight is before
    assert not net[0]._forward_hooks
    assert net.training and not twin.training
    assert net[1].running_mean.eq(0).all()


def test_a_module_that_appears_twice_does_so_in_the_copy():
    layer = nn.Linear(2, 2)
    twin = shared_copy(nn.ModuleList([layer, layer]))
    assert twin[0] is twin[1] and twin[0] is not layer
