"""What every script does with what cannot be done: exit status 2, one line that names it, and nothing written."""

import pytest


def assert_refused(main, config, run, said, capsys):
    """`main(config, run)` ends that way; said: in the line. run: with a folder that does not exist."""
    with pytest.raises(SystemExit) as refusal:
        main(config, run)
    assert refusal.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not run.out.exists()
