"""Where arrays live: meshes by name, one table of rules, and specs for every weight type from its layout."""

from jaxmodel.sharding.mesh import make_mesh
from jaxmodel.sharding.partitioning import Partitioning
from jaxmodel.sharding.rules import AXES, RULES, Rules, with_rules

__all__ = ["AXES", "RULES", "Partitioning", "Rules", "make_mesh", "with_rules"]
