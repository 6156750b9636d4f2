from estimator.stack.efficiencies import FURTHER_PARAMETERS, PARAMETERS, Efficiencies, are_parameters
from hardware.catalog import load_catalog


def test_parameters_have_an_order() -> None:
    """All usual parameters, then any of the further ones in theirs; nothing missing, unknown or out of order."""
    assert are_parameters(PARAMETERS)
    assert are_parameters((*PARAMETERS, *FURTHER_PARAMETERS))
    assert are_parameters((*PARAMETERS, FURTHER_PARAMETERS[0], FURTHER_PARAMETERS[-1]))
    assert not are_parameters(PARAMETERS[1:])
    assert not are_parameters((*PARAMETERS, FURTHER_PARAMETERS[-1], FURTHER_PARAMETERS[0]))
    assert not are_parameters((*PARAMETERS, "charm"))


def test_every_parameter_is_a_field() -> None:
    """What a stack may fit is what the formulas take, but for factors, and a loss that is unknown."""
    assert {*PARAMETERS, *FURTHER_PARAMETERS} == set(Efficiencies._fields) - {"family_factor", "loss_ratio"}


def test_what_holds_on_processors_alone_holds_there_once() -> None:
    """On a processor further seconds, bytes and a ratio join those of accelerators, and joined they have no more."""
    usual = Efficiencies(**dict.fromkeys(PARAMETERS, 1.0), base_bytes=2.0)
    own = usual._replace(processor_s_per_step=3.0, processor_memory_ratio=1.5, processor_bytes=4.0)
    catalog = load_catalog()
    assert own.on(catalog.accelerator("h200-sxm-141gb")) == own
    found = own.on(catalog.accelerator("epyc-7763"))
    assert (found.launch_s_per_step, found.memory_ratio, found.base_bytes) == (4.0, 1.5, 6.0)
    assert found.on(catalog.accelerator("epyc-7763")) == found
    assert [one.id for one in catalog.accelerators if one.is_processor] == ["epyc-7763"]
