"""What the fields of models are for, from their source."""

from __future__ import annotations

from pydantic import BaseModel

from vgpud.control import models, params
from vgpud.control.field_docs import WithFieldDocs, field_docs
from vgpud.daemon.config_tables import DaemonTable, DeviceTable, MatchTable, SlotPolicyTable


class _Base(BaseModel):
    first: int
    """The first
    of two."""
    second: int = 0


class _Derived(_Base):
    """A class's own string is none of a field's."""

    third: str = ""
    """The third."""
    fourth: str = ""
    # A comment is none.


def test_the_string_below_a_field_is_its_own() -> None:
    assert field_docs(_Base) == {"first": "The first\nof two."}
    assert field_docs(_Derived)["third"] == "The third."
    assert field_docs(_Derived)["first"] == field_docs(_Base)["first"]
    assert "second" not in field_docs(_Derived)


def test_a_schema_has_them() -> None:
    properties = _Derived.model_json_schema(schema_generator=WithFieldDocs)["properties"]
    assert properties["first"]["description"] == "The first\nof two."
    assert "description" not in properties["second"]


def test_every_key_of_the_configuration_is_described() -> None:
    for table in (DaemonTable, DeviceTable, MatchTable, SlotPolicyTable):
        assert field_docs(table).keys() == table.model_fields.keys()


def test_generic_and_inherited_models_have_theirs() -> None:
    assert "total" not in field_docs(models.Page[models.DeviceDetails])
    assert field_docs(models.Agent)["flags"] == "The flags that the agent grants."
    assert field_docs(params.AttachAgent).keys() == {"guest_phys_addr", "vm_setup"}
