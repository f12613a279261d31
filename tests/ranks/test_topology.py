"""What a process says about its place among the others."""

from types import SimpleNamespace

import pytest

from moetrace.topology import Topology, topology_of


def mesh(names, position):
    """What is read of a DeviceMesh."""
    return SimpleNamespace(mesh_dim_names=names, get_coordinate=lambda: position)


class TestTopology:
    def test_copies_share_all_but_the_replicated_coordinates(self):
        """F10: two tensor-parallel ranks of one data-parallel rank are copies, others are not."""
        places = [
            Topology({"dp": dp, "tp": tp}, replicated=("tp",)) for dp in (0, 1) for tp in (0, 1)
        ]
        assert places[0].copies_of() == places[1].copies_of() == (("dp", 0),)
        assert places[2].copies_of() == (("dp", 1),)

    def test_survives_the_header(self):
        """What stands in a segment's header is the same topology."""
        place = Topology({"pp": 2, "tp": 1}, replicated=("tp",))
        assert Topology.from_record(place.to_record()) == place

    @pytest.mark.parametrize(
        "record",
        [
            None,
            [],
            {},
            {"coordinates": 3},
            {"coordinates": {"tp": -1}, "replicated": []},
            {"coordinates": {"tp": 2**70}, "replicated": []},
            {"coordinates": {"tp": 0}, "replicated": ["ep"]},
            {"coordinates": {str(n): 0 for n in range(17)}, "replicated": []},
        ],
    )
    def test_a_hostile_header_has_none(self, record):
        """A record that is none counts as not declared, and nothing is raised."""
        assert Topology.from_record(record) is None

    @pytest.mark.parametrize("position", [-1, 1.0, True, None, 1 << 31])
    def test_refuses_what_is_no_position(self, position):
        """A coordinate is an integer from 0."""
        with pytest.raises(ValueError, match="a coordinate is an integer from 0"):
            Topology({"dp": position})

    def test_refuses_to_replicate_what_is_not_there(self):
        """A dimension without a coordinate cannot be replicated; the message lists those there."""
        with pytest.raises(ValueError, match="the coordinates are dp, tp"):
            Topology({"dp": 0, "tp": 0}, replicated=("cp",))


class TestMesh:
    def test_gives_its_coordinates(self):
        """Names and position of a DeviceMesh are enough, and nothing else of it is touched."""
        place = topology_of(mesh(("pp", "dp"), [1, 3]))
        assert place == Topology({"pp": 1, "dp": 3})
        assert place.staged

    @pytest.mark.parametrize(("names", "position"), [(None, [0]), (("dp",), None)])
    def test_without_names_or_without_us(self, names, position):
        """A mesh that says nothing about this process is refused with what to pass instead."""
        with pytest.raises(ValueError, match=r"pass moetrace\.Topology"):
            topology_of(mesh(names, position))

    def test_anything_else_is_a_mistake(self):
        """The message shows both forms."""
        with pytest.raises(TypeError, match="found dict as topology; pass a DeviceMesh"):
            topology_of({"dp": 0})
