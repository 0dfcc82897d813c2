"""Pages of organizations. The guard of every page is ``org_role``."""

from organizations.access import OrgRequest, org_role

__all__ = ["OrgRequest", "org_role"]
