from estimator.stack.efficiencies import FURTHER_PARAMETERS, PARAMETERS, Efficiencies, are_parameters


def test_parameters_have_an_order() -> None:
    """All usual parameters, then any of the further ones in theirs; nothing missing, unknown or out of order."""
    assert are_parameters(PARAMETERS)
    assert are_parameters((*PARAMETERS, *FURTHER_PARAMETERS))
    assert are_parameters((*PARAMETERS, FURTHER_PARAMETERS[0], FURTHER_PARAMETERS[-1]))
    assert not are_parameters(PARAMETERS[1:])
    assert not are_parameters((*PARAMETERS, FURTHER_PARAMETERS[-1], FURTHER_PARAMETERS[0]))
    assert not are_parameters((*PARAMETERS, "charm"))


def test_every_parameter_is_a_field() -> None:
    """What a stack may fit is what the formulas take, but for the factor of families, devices and sources."""
    assert {*PARAMETERS, *FURTHER_PARAMETERS} == set(Efficiencies._fields) - {"family_factor"}
