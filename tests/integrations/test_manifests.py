"""The manifests for Istio and Envoy Gateway have the settings that enforcement needs."""

from tests.proxies.envoy.proxy import manifest


def test_istio() -> None:
    """The policy names the provider, which fails closed and sends bodies as bytes."""
    providers = manifest("istio/mesh-config.yaml")["spec"]["meshConfig"]["extensionProviders"]
    policy = manifest("istio/authorization-policy.yaml")
    assert (policy["apiVersion"], policy["kind"]) == (
        "security.istio.io/v1",
        "AuthorizationPolicy",
    )
    assert policy["spec"]["action"] == "CUSTOM"
    assert policy["spec"]["rules"] == [{}]
    assert [one["name"] for one in providers] == [policy["spec"]["provider"]["name"]]
    told = providers[0]["envoyExtAuthzGrpc"]
    assert (told["failOpen"], told["statusOnError"]) == (False, "503")
    assert told["includeRequestBodyInCheck"]["packAsBytes"] is True


def test_envoy_gateway() -> None:
    """The policy asks policyd over gRPC, fails closed and sends bodies."""
    policy = manifest("gateway/security-policy.yaml")
    assert (policy["apiVersion"], policy["kind"]) == (
        "gateway.envoyproxy.io/v1alpha1",
        "SecurityPolicy",
    )
    told = policy["spec"]["extAuth"]
    assert told["failOpen"] is False
    assert told["grpc"]["backendRefs"] == [{"name": "policyd", "port": 50051}]
    assert told["bodyToExtAuth"]["maxRequestBytes"] < 4 * 2**20
