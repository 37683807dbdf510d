"""Commands in processes of their own that share imports: output, exit codes, nothing left over."""

import signal

from lowbit import __version__
from lowbit.evaluation.fresh import Fresh


def test_commands_end_as_if_they_were_started_alone():
    with Fresh() as fresh:
        told = fresh.run(["--version"], live=False)
        assert (told.code, told.stdout.strip()) == (0, __version__)
        wrong = fresh.run(["quantize", "no-such-folder", "rtn(int4-g128)"], live=False)
        assert wrong.code == 3
        assert wrong.stdout == ""
        assert "no-such-folder" in wrong.stderr
        assert fresh.run(["--version"], live=False) == told  # the one that failed left nothing behind


def test_the_server_stops_with_its_context_and_not_by_ctrl_c():
    with Fresh() as fresh:
        assert fresh.run(["--version"], live=False).code == 0
        fresh._server.send_signal(signal.SIGINT)  # Ctrl-C reaches the whole group: the server leaves it to the command
        assert fresh.run(["--version"], live=False).code == 0
    assert fresh._server.returncode == 0
