from django.apps import AppConfig
from django.core import checks
from django.db.models.signals import post_migrate


class OrganizationsConfig(AppConfig):
    name = "organizations"

    def ready(self) -> None:
        from accounts import tokens
        from organizations import exports, models, reactions, rls

        tokens.register(models.ServiceToken)

        post_migrate.connect(rls.protect, sender=self, dispatch_uid="organizations.rls")
        checks.register(rls.check_database, checks.Tags.database)
        reactions.connect()
        exports.connect()
