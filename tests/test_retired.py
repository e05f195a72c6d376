"""Runs that an earlier version recorded with options that are gone are found and read."""

import pytest
import yaml

from chanprune.config.cli import composed
from chanprune.config.recorded import NOT_RECORDED, checked_config
from chanprune.config.schema import validate
from chanprune.processes.errors import UserError
from chanprune.records.retired import RETIRED, with_retired, without_retired
from chanprune.records.run_dir import look


def recorded(method):
    config = validate(composed("config", [f"method={method}"]))
    return {key: value for key, value in config.items() if key not in NOT_RECORDED}


def write(folder, config):
    record = {"config": config, "environment": {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(record))


@pytest.mark.parametrize("method", RETIRED)
def test_a_run_of_an_earlier_version_is_the_same_run(method, tmp_path):
    now = recorded(method)
    before = with_retired(now)
    assert before != now and without_retired(before) == now
    write(tmp_path, before)
    (tmp_path / "metrics.jsonl").touch()
    assert look(tmp_path, now, overwrite=False).state == "unfinished"
    assert checked_config(tmp_path) == now


@pytest.mark.parametrize("method", RETIRED)
def test_another_value_of_an_option_that_is_gone_is_refused_by_name(method, tmp_path):
    for option in RETIRED[method]:
        before = with_retired(recorded(method))
        before["method"][option] = "another"
        write(tmp_path, before)
        with pytest.raises(UserError, match=f"method.{option}: unknown key"):
            checked_config(tmp_path)


def test_a_run_of_before_an_option_is_the_run_that_leaves_it_out():
    now = recorded("slimming")
    before = with_retired(now)
    assert "criterion" not in before and "target_macs" not in before["prune"]
    assert without_retired(before) == now
    asked = {**now, "prune": {**now["prune"], "target_macs": 0.5}}
    assert with_retired(asked)["prune"]["target_macs"] == 0.5


def test_other_records_stay_as_they_are():
    for config in ({}, {"method": 3}, {"method": {"name": ["x"]}}, recorded("slimming")):
        assert without_retired(config) == config
