"""Where rank 0 listens, and the address that it gives to the others."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from harness.distributed.links import Leader
from harness.errors import UserError


def test_other_nodes_are_given_the_address_of_the_launcher_and_reach_it_by_any_interface():
    """A node that knows its own name as 127.0.1.1 would listen there alone."""
    leader = Leader(2, "localhost", b"key", 5.0)
    with closing(leader._listener):
        host, port = leader.address
        assert host == "localhost"
        for address in ("127.0.0.1", "127.0.0.3"):
            socket.create_connection((address, port), timeout=5).close()


def test_ranks_of_one_machine_meet_on_its_loopback_alone():
    leader = Leader(2, "127.0.0.1", b"key", 5.0)
    with closing(leader._listener):
        assert leader.address[0] == "127.0.0.1"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.3", leader.address[1]), timeout=5)


def test_the_port_may_be_chosen():
    first = Leader(2, "127.0.0.1", b"key", 5.0)
    with closing(first._listener):
        port = first.address[1]
        with pytest.raises(UserError, match=rf"cluster.port={port} is taken .*: cluster.port=0 takes a free one"):
            Leader(2, "127.0.0.1", b"key", 5.0, port)
    again = Leader(2, "127.0.0.1", b"key", 5.0, port)
    with closing(again._listener):
        assert again.address == ("127.0.0.1", port)
