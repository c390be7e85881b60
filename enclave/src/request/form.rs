//! The form that an answer is to have, as clients ask for it: `response_format` of the OpenAI API, and a grammar in vLLM's
//! `structured_outputs`.

use inference::Form;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::chat::Text;

/// At most one form may be asked for; a text of any form is none.
pub(super) fn read(
    format: Option<ResponseFormat<'_>>,
    structured: Option<StructuredOutputs>,
) -> Result<Option<Form>, &'static str> {
    let json = format.map_or(Ok(None), ResponseFormat::read)?;
    let grammar = structured.map_or(Ok(None), StructuredOutputs::read)?;
    match (json, grammar) {
        (Some(_), Some(_)) => Err("response_format and structured_outputs cannot both name a form"),
        (json, grammar) => Ok(json.or(grammar)),
    }
}

#[derive(Deserialize)]
pub(super) struct ResponseFormat<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow)]
    json_schema: Option<JsonSchema<'a>>,
    /// Where some servers take a schema.
    schema: Option<IgnoredAny>,
}

/// `name`, `description` and `strict` change nothing: an answer always has its schema's form.
#[derive(Deserialize)]
struct JsonSchema<'a> {
    #[serde(borrow)]
    schema: Option<&'a RawValue>,
}

impl ResponseFormat<'_> {
    fn read(self) -> Result<Option<Form>, &'static str> {
        let Self { kind, json_schema, schema } = self;
        if schema.is_some() {
            return Err("response_format takes a schema in json_schema.schema");
        }
        match (kind.as_str(), json_schema.and_then(|inner| inner.schema)) {
            ("text", None) => Ok(None),
            ("json_object", None) => Ok(Some(Form::JsonObject)),
            ("json_schema", Some(schema)) => Ok(Some(Form::JsonSchema(Zeroizing::new(schema.get().to_owned())))),
            ("json_schema", None) => Err("response_format.json_schema.schema is missing"),
            _ => Err("response_format must be text, json_object or json_schema"),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct StructuredOutputs {
    grammar: Option<Text>,
    json: Option<IgnoredAny>,
    json_object: Option<IgnoredAny>,
    regex: Option<IgnoredAny>,
    choice: Option<IgnoredAny>,
    structural_tag: Option<IgnoredAny>,
}

impl StructuredOutputs {
    fn read(self) -> Result<Option<Form>, &'static str> {
        let Self { grammar, json, json_object, regex, choice, structural_tag } = self;
        if [json, json_object, regex, choice, structural_tag].iter().any(Option::is_some) {
            return Err("structured_outputs takes a grammar alone; a JSON schema goes to response_format");
        }
        Ok(grammar.map(|Text(grammar)| Form::Grammar(grammar)))
    }
}
