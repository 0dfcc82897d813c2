from django.apps import AppConfig


class SiteConfig(AppConfig):
    name = "flowml_site"

    def ready(self) -> None:
        from flowml_site import logs

        logs.configure()
