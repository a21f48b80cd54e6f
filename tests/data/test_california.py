import numpy as np
import pytest

from fedsim.data.california import CaliforniaHousing
from fedsim.errors import DataError

HEADER = (
    "longitude,latitude,housing_median_age,total_rooms,total_bedrooms,population,households,"
    "median_income,median_house_value,ocean_proximity\n"
)


def rows(count=10, blank=()):
    return "".join(
        f"{-120 - i},{30 + i},{i},{(i + 2) * 30},{'' if i in blank else (i + 1) * 10},{10 * i},10,"
        f"{i / 2},{1000 * (i + 1)},{'INLAND' if i % 2 else 'NEAR BAY'}\n"
        for i in range(count)
    )


def load(tmp_path, text=None, **fields):
    folder = tmp_path / "california_housing"
    folder.mkdir(exist_ok=True)
    (folder / "housing.csv").write_text(HEADER + rows() if text is None else text)
    return CaliforniaHousing(root=str(tmp_path), **fields).load()


def test_inputs_are_standardised_by_the_train_part(tmp_path):
    data = load(tmp_path)
    assert data.train_x.shape == (8, 8) and data.test_x.shape == (2, 8)
    assert data.train_y.shape == (8, 1) and data.task == "regression" and data.num_outputs == 1
    assert data.train_x.mean(0).abs().max() < 1e-6
    # households is 10 for all: constant in both readings of the features.
    assert data.train_x[:, 6].abs().max() == 0


def test_columns_keep_what_was_read(tmp_path):
    columns = load(tmp_path).columns
    order = np.argsort(-columns["longitude"])
    index = (columns["target"] / 1000 - 1).astype(int)
    assert (columns["longitude"] == -120 - index).all() and (
        columns["latitude"] == 30 + index
    ).all()
    assert set(columns["ocean_proximity"][index % 2 == 1]) == {"INLAND"}
    assert (np.diff(order) > 0).all()  # file order


@pytest.mark.parametrize("target", ["standard", "log", "max"])
def test_scale_is_recovered_from_the_target_column(tmp_path, target):
    data = load(tmp_path, target=target)
    raw = data.columns["target"]
    expected = {
        "standard": (raw - raw.mean()) / raw.std(),
        "log": (np.log(raw) - np.log(raw).mean()) / np.log(raw).std(),
        "max": raw / raw.max(),
    }[target]
    assert data.train_y[:, 0].numpy() == pytest.approx(expected, abs=1e-6)


def test_per_household(tmp_path):
    text = HEADER + rows().replace(",10,", ",20,", 3)
    totals, means = (load(tmp_path, text, features=f) for f in ("totals", "per_household"))
    raw_rooms = (totals.columns["target"] / 1000 + 1) * 30
    x = totals.train_x[:, 3].numpy()
    assert x == pytest.approx((raw_rooms - raw_rooms.mean()) / raw_rooms.std(), abs=1e-6)
    assert np.abs(means.train_x[:, 3].numpy() - x).max() > 0.1


@pytest.mark.parametrize("seed", range(4))  # the medians of all and of train may agree by chance
def test_blank_bedrooms_get_the_train_median(tmp_path, seed):
    whole = load(tmp_path, features="totals", split_seed=seed)
    index = (whole.columns["target"] / 1000 - 1).astype(int)
    hidden = int(index[3])
    filled = load(tmp_path, HEADER + rows(blank=(hidden,)), features="totals", split_seed=seed)
    bedrooms = (index + 1) * 10.0
    bedrooms[3] = np.median(np.delete(bedrooms, 3))
    expected = (bedrooms - bedrooms.mean()) / bedrooms.std()
    assert filled.train_x[:, 4].numpy() == pytest.approx(expected, abs=1e-6)


def test_ocean_proximity_is_appended(tmp_path):
    data = load(tmp_path, ocean_proximity=True)
    assert data.train_x.shape == (8, 10) and data.test_x.shape == (2, 10)
    inland = data.columns["ocean_proximity"] == "INLAND"
    assert (data.train_x[:, 8].numpy() == inland).all()
    assert (data.train_x[:, 9].numpy() == ~inland).all()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("median_income", "income", "no column 'median_income'"),
        (",60,", ",,", "is not a number"),
        (",1000,", ",0,", "not > 0"),
        (",1000,", ",nan,", "median_house_value"),
        (",10,0,10,", ",10,0,0,", "not > 0"),
        (",10,0,10,", ",nan,0,10,", "total_bedrooms"),
        ("-120,30", "1e300,30", "longitude"),
    ],
)
def test_damaged_values(tmp_path, old, new, message):
    text = HEADER + rows()
    assert old in text
    with pytest.raises(DataError, match=message):
        load(tmp_path, text.replace(old, new, 1))


def test_no_known_bedrooms(tmp_path):
    with pytest.raises(DataError, match="total_bedrooms"):
        load(tmp_path, HEADER + rows(blank=range(10)))


def test_missing_file_names_the_source(tmp_path):
    with pytest.raises(DataError, match=r"housing\.csv.*github\.com/ageron"):
        CaliforniaHousing(root=str(tmp_path)).load()
