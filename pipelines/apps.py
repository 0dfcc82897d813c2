from django.apps import AppConfig


class PipelinesConfig(AppConfig):
    name = "pipelines"

    def ready(self) -> None:
        from pipelines import handing, hooks, reactions
        from training import telling

        reactions.connect()
        handing.connect()
        telling.LISTENERS.append(hooks.training_ended)
