from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "accounts"

    def ready(self) -> None:
        from accounts import authentication, models, tokens

        tokens.register(models.PersonalToken)
        assert authentication  # its description is part of the API's schema
