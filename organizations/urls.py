from django.urls import path

from organizations import views

app_name = "organizations"
urlpatterns = [
    path("sign-up", views.sign_up, name="sign-up"),
    path("join", views.join, name="join"),
    path("organization", views.detail, name="detail"),
    path("organization/choose/<uuid:organization_id>", views.choose, name="choose"),
]
