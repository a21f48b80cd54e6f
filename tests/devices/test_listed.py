"""Devices of a CSV file, and every way in which one can be wrong."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.config import compose
from fedsim.devices.listed import Listed, read_devices
from fedsim.errors import ConfigError, DataError
from fedsim.simulation import Simulation


@pytest.fixture
def fleet(tmp_path):
    def make(text, num_clients=3, seed=0):
        path = tmp_path / "devices.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return Listed(path=str(path)).fleet(num_clients, seed)

    return make


THREE = "down,flops,up\r\n1e3,5e8,10\r\n2e3,6e8,20\r\n3e3,7e8,30\r\n"


def test_row_n_is_client_n_where_there_are_enough(fleet):
    found = fleet(b"\xef\xbb\xbf" + THREE.encode())
    assert found.flops_N.tolist() == [5e8, 6e8, 7e8]
    assert found.down_N.tolist() == [1e3, 2e3, 3e3]
    assert found.up_N.tolist() == [10, 20, 30]
    assert found.memory_N is None
    assert fleet(THREE, 2).up_N.tolist() == [10, 20]


def test_fewer_rows_are_drawn_from_by_the_seed_and_said_so(fleet, caplog):
    with caplog.at_level(logging.WARNING):
        found = fleet(THREE, 3000)
    assert "3 rows for 3000 clients; 3000 clients draw one of them" in caplog.text
    assert (found.up_N * 100 == found.down_N).all()  # whole rows
    assert np.bincount(found.up_N.astype(int) // 10).tolist()[1:] == pytest.approx([1000] * 3, 0.1)
    assert (fleet(THREE, 3000).up_N == found.up_N).all()
    assert (fleet(THREE, 3000, seed=1).up_N != found.up_N).any()


def test_a_named_client_has_its_row_and_the_others_draw(fleet, caplog):
    text = "client,flops,down,up,memory\n2,3,3,3,300\n0,1,1,1,100\n"
    with caplog.at_level(logging.WARNING):
        found = fleet(text, 9)
    assert "7 clients draw" in caplog.text
    assert found.memory_N[[0, 2]].tolist() == [100, 300]
    assert set(found.memory_N.tolist()) == {100, 300}
    caplog.clear()
    assert fleet("client,flops,down,up\n1,3,3,3\n0,1,1,1\n", 2).flops_N.tolist() == [1, 3]
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the header is ''; expected the columns flops,down,up"),
        ("flops,down\n1,2\n", "line 1: the header is 'flops,down'"),
        ("flops,down,up,cpu\n1,2,3,4\n", "line 1: the header is 'flops,down,up,cpu'"),
        ("flops,down,up,up\n1,2,3,4\n", "line 1: the header"),
        ("flops,down,up\n", "holds no devices"),
        ("flops,down,up\n1,2,3\n1,2\n", "line 3: 2 cells; the header has 3"),
        ("flops,down,up\n1,x,3\n", "line 2, column 'down': 'x' is not allowed; expected a number"),
        ("flops,down,up\n1,2,\n", "line 2, column 'up': '' is not"),
        ("flops,down,up\n0,2,3\n", "line 2, column 'flops': '0' is not"),
        ("flops,down,up\n1,2,-3\n", "line 2, column 'up': '-3' is not"),
        ("flops,down,up\n1,nan,3\n", "line 2, column 'down': 'nan' is not"),
        ("flops,down,up\ninf,2,3\n", "line 2, column 'flops': 'inf' is not"),
        ("flops,down,up\n1_0,2,3\n", "line 2, column 'flops': '1_0' is not"),
        ("flops,down,up,memory\n1,2,3,4\n1,2,3,0\n", "line 3, column 'memory': '0' is not"),
        ("client,flops,down,up\n3,1,2,3\n", r"line 2, column 'client': '3' is no client; .*0\.\.2"),
        ("client,flops,down,up\n1.0,1,2,3\n", "column 'client': '1.0' is no client"),
        (f"client,flops,down,up\n{'9' * 400},1,2,3\n", "column 'client': '9{40}' is no client"),
        ("client,flops,down,up\n1,1,2,3\n1,1,2,3\n", "line 3, .* client 1 has a row already"),
        (b"flops,down,up\n1,2,\xff\n", "not a CSV file in UTF-8"),
        (b"flops,down,up\n1,2,\x00\n", "line 2, column 'up'|not a CSV file"),
        ('flops,down,up\n1,2,"' + "3" * 200_000, "not a CSV file|is not allowed"),
    ],
)
def test_what_is_wrong_is_said_with_its_row_and_column(fleet, text, message):
    with pytest.raises(DataError, match=message) as caught:
        fleet(text)
    assert len(str(caught.value)) < 600


def test_a_missing_path_or_file_is_said():
    with pytest.raises(ConfigError, match=r"^path: no file of devices is named.*devices\.path="):
        Listed().fleet(3, 0)
    with pytest.raises(ConfigError, match=r"'nowhere\.csv' cannot be read: No such file"):
        Listed(path="nowhere.csv").fleet(3, 0)


def test_a_run_takes_its_seconds_from_the_file(tmp_path):
    path = tmp_path / "devices.csv"
    path.write_text("client,flops,down,up\n1,1048576,1024,512\n0,65536,4096,8192\n")
    words = ["partition.num_clients=2", "participation=full", "model=linear", "partition=iid"]
    words += ["rounds=1", "devices=csv", f"devices.path={path}", "device=cpu", "client.epochs=1"]
    simulation = Simulation(compose("quickstart", words))
    *_, (_, report) = simulation.loop.run(simulation.runtime.initial_params())
    told = report.footprint["train"]
    assert told["seconds"] == [
        told["bytes-down"][0] / 4096 + told["flops"][0] / 65536 + told["bytes-up"][0] / 8192,
        told["bytes-down"][1] / 1024 + told["flops"][1] / 1048576 + told["bytes-up"][1] / 512,
    ]
    missing = Simulation(compose("quickstart", ["devices=csv"]))
    with pytest.raises(ConfigError, match=r"^devices\.path: no file"):
        missing.check()


CELLS = st.sampled_from(["1", "0", "-3", "2.5", "nan", "1e400", "", " 4 ", '"', "x", "\0", "９"])
TEXTS = st.lists(st.lists(CELLS, max_size=5).map(",".join), max_size=4).map("\n".join)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from([b"client,flops,down,up,memory\n", b"flops,down,up\n", b""]), TEXTS)
def test_no_file_is_answered_with_anything_but_devices_or_one_sentence(
    tmp_path_factory, head, text
):
    path = tmp_path_factory.getbasetemp() / "fuzzed.csv"
    path.write_bytes(head + text.encode())
    try:
        found = read_devices(path, 3)
    except DataError as error:
        assert str(error).startswith("path: ") and len(str(error)) < 600
    else:
        assert all(np.isfinite(column).all() for column in found.values())
        assert min(found["up"]) > 0
