from django.urls import path

from clusters import views

app_name = "clusters"
urlpatterns = [
    path("clusters", views.clusters, name="clusters"),
    path("clusters/new", views.new_cluster, name="new-cluster"),
    path("clusters/<uuid:cluster>", views.cluster, name="cluster"),
    path("clusters/<uuid:cluster>/history", views.cluster_history, name="history"),
    path("clusters/<uuid:cluster>/nodes", views.add_node, name="add-node"),
    path("clusters/<uuid:cluster>/nodes/<uuid:node>/remove", views.remove_node, name="remove-node"),
    path("clusters/<uuid:cluster>/delete", views.delete_cluster, name="delete-cluster"),
    path("deployments", views.deployments, name="deployments"),
    path("deployments/new", views.new_deployment, name="new-deployment"),
    path("deployments/<uuid:deployment>", views.deployment, name="deployment"),
    path("deployments/<uuid:deployment>/live", views.deployment_live, name="live"),
    path("deployments/<uuid:deployment>/watch", views.watched, name="watch"),
    path("deployments/<uuid:deployment>/logs", views.logs, name="logs"),
    path("deployments/<uuid:deployment>/change", views.change, name="change"),
    path("deployments/<uuid:deployment>/revise", views.revise, name="revise"),
    path("deployments/<uuid:deployment>/canary", views.canary, name="canary"),
    *(
        path(f"deployments/<uuid:deployment>/{action}", views.act, {"action": action}, name=action)
        for action in views.DOES
    ),
]
