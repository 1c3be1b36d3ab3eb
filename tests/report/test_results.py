from exporter.report.results import Budget


def test_budget_is_held_up_to_its_limit():
    assert Budget("max_size", 100, 100).held
    assert not Budget("max_size", 100, 101).held
    assert not Budget("max_latency", 1.0, float("inf")).held
