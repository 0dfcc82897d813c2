from django.apps import AppConfig


class SiteConfig(AppConfig):
    name = "flowml_site"
