import pytest

from fusionbench.data.derm7pt import Derm7pt
from fusionbench.data.lidc import Lidc
from fusionbench.data.mmc_amd import MmcAmd
from fusionbench.data.mrnet import MRNet
from fusionbench.errors import UserError


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (Derm7pt, {"size": 0}, "'data.size' must be at least 1, not 0"),
        (MmcAmd, {"size": -5}, "'data.size' must be at least 1, not -5"),
        (MRNet, {"size": 0}, "'data.size' must be at least 1, not 0"),
        (MRNet, {"slices": 0}, "'data.slices' must be at least 1, not 0"),
        (MRNet, {"split_seed": -1}, "'data.split_seed' must lie in 0 to 4294967295, not -1"),
        (Lidc, {"size": 0}, "'data.size' must be at least 1, not 0"),
        (Lidc, {"split_seed": 2**32}, "'data.split_seed' must lie in 0 to 4294967295, not 4294967296"),
    ],
)
def test_options_are_checked_before_the_folder_is_looked_for(dataset, options, message):
    with pytest.raises(UserError) as error:
        dataset("/nowhere", **options)
    assert str(error.value) == message
