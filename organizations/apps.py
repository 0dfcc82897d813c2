from django.apps import AppConfig
from django.core import checks
from django.db.models.signals import post_migrate


class OrganizationsConfig(AppConfig):
    name = "organizations"

    def ready(self) -> None:
        from organizations import reactions, rls

        post_migrate.connect(rls.protect, sender=self, dispatch_uid="organizations.rls")
        checks.register(rls.check_database, checks.Tags.database)
        reactions.connect()
