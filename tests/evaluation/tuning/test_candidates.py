"""The settings that a search tries, and what they cost."""

import pytest

from prod9.config.schema import RectifiedFlowSamplerConfig, SamplerConfig
from prod9.evaluation.tuning import candidates as space

OWN = {"maskgit": SamplerConfig(steps=12, temperature=0.95), "maisi": RectifiedFlowSamplerConfig(steps=25)}


@pytest.mark.parametrize("family", ["maskgit", "maisi"])
@pytest.mark.parametrize("autoguided", [False, True])
def test_the_own_setting_is_first_and_every_point_of_the_grid_follows_once(family, autoguided):
    own = OWN[family]
    drawn = space.draw_candidates(own, family=family, autoguided=autoguided, count=10_000, seed=3)
    size = 1
    for values in space.AXES[family].values():
        size *= len(values)
    assert len(drawn) == 1 + size * (len(space.AUTOGUIDANCE) if autoguided else 1)
    assert space.with_changes(own, drawn[0]) == own
    assert len({repr(one) for one in drawn}) == len(drawn)
    assert drawn[:7] == space.draw_candidates(own, family=family, autoguided=autoguided, count=7, seed=3)
    for one in drawn:
        assert space.with_changes(own, one).steps == one["steps"]


def test_the_seed_decides_the_order():
    one, other = (
        space.draw_candidates(OWN["maisi"], family="maisi", autoguided=True, count=6, seed=seed)
        for seed in (0, 1)
    )
    assert one[0] == other[0]
    assert one != other


def test_rounds_draw_more_volumes_of_fewer_settings():
    assert [space.volumes_of(number, 16) for number in range(3)] == [4, 8, 16]
    assert [space.kept_after(number, 12) for number in range(3)] == [6, 6, 12]
    # 12 settings draw 4 volumes, 6 of them 8, 3 of them 16: each volume costs 10 evaluations.
    assert space.planned([10.0] * 12, 16) == 10 * (12 * 4 + 6 * 8 + 3 * 16)


@pytest.mark.parametrize(("budget", "count"), [(1439, 11), (1440, 12), (1e9, 20), (0, 0)])
def test_as_many_settings_as_the_budget_allows(budget, count):
    assert space.affordable([10.0] * 20, 16, budget) == count
