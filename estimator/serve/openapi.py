"""What the live page's JSON is, for programs: an OpenAPI 3.1 document, from the parameters that are read."""

from typing import Any

from estimator.serve.query import MOST_CHARACTERS, PARAMETERS, PATTERNS, Parameter

RANGE = {
    "type": "object",
    "description": "a value with its 90 % interval",
    "required": ["value", "low", "high"],
    "properties": {name: {"type": "number"} for name in ("value", "low", "high")},
}


def openapi_document() -> dict[str, Any]:
    """Return the document."""
    parameters = [_parameter(one) for one in PARAMETERS.values() if one.name != "everywhere"]
    answers = {
        "200": _answer("the object of `estimate --json`; `best` is null where no plan fits", "Estimate"),
        "400": _answer("a parameter is unknown or breaks a rule: what was given, which rule, the mend", "Problem"),
        "403": _answer("the request comes from another site, or by another name of this host", "Problem"),
        "413": _answer("what is posted is too large", "Problem"),
    }
    posted = {"description": "a Hugging Face config.json", "content": {"application/json": {"schema": {}}}}
    by_name = {"summary": "Predict a fine-tune of a built-in model", "parameters": parameters, "responses": answers}
    by_config = {
        "summary": "Predict a fine-tune of the model that a config.json describes",
        "parameters": [one for one in parameters if one["name"] != "model"],
        "requestBody": {"required": True, **posted},
        "responses": answers,
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "foretrain: estimate", "version": "1"},
        "paths": {"/api/estimate": {"get": by_name, "post": by_config}},
        "components": {"schemas": {"Estimate": _estimate(), "Range": RANGE, "Problem": _problem()}},
    }


def _parameter(one: Parameter) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": one.kind}
    if one.kind == "string":
        schema |= {"enum": list(one.choices)} if one.choices else {"maxLength": MOST_CHARACTERS}
    elif one.kind == "integer":
        schema["pattern"] = PATTERNS["integer"]
    return {"name": one.name, "in": "query", "required": False, "description": one.about, "schema": schema}


def _answer(about: str, schema: str) -> dict[str, Any]:
    of = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    return {"description": about, "content": {"application/json": of}}


def _estimate() -> dict[str, Any]:
    kinds = {"stack": {"type": "string"}, "plans": {"type": "array"}, "best": {"type": ["object", "null"]}}
    kinds |= {name: {"type": "object"} for name in ("workload", "flavor", "search")}
    properties = {"schema": {"const": "estimate/1"}, **kinds}
    return {"type": "object", "required": list(properties), "properties": properties}


def _problem() -> dict[str, Any]:
    return {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
