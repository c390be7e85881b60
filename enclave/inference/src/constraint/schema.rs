//! A customer's JSON Schema, before the library works on it: only what the library holds an answer to, and only what it
//! multiplies out in little time and memory.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::{ConstraintError, weight};

/// Reads and checks a schema.
pub(super) fn read(text: &str) -> Result<Value, ConstraintError> {
    let mut schema: Value = serde_json::from_str(text).map_err(|_| ConstraintError::NotJson)?;
    Survey::of(&schema)?;
    if schema == Value::Bool(true) {
        schema = json!({});
    }
    if let Some(members) = schema.as_object_mut() {
        // In place of the options that a customer may have written there: some ask for what is no JSON.
        members.insert(
            "x-guidance".to_owned(),
            json!({"whitespace_pattern": WHITE_SPACE, "json_allowed_escapes": ESCAPES}),
        );
    }
    Ok(schema)
}

/// The keyword that a message of the library begins with or soon comes to; later words may be the customer's.
pub(super) fn keyword_in(message: &str) -> Option<&'static str> {
    if message.starts_with("invalid regex") || message.starts_with("regex parse error") {
        return Some("pattern");
    }
    let known = |word: &str| {
        ASSERTIONS.iter().chain(SCALARS).chain(WAYS).chain(&["type"]).find(|keyword| **keyword == word).copied()
    };
    let words = message.split(|character: char| !character.is_ascii_alphabetic()).filter(|word| !word.is_empty());
    words.take(6).find_map(known)
}

/// Counts what the library makes of a schema.
struct Survey<'a> {
    root: &'a Value,
    /// Values in the whole of it.
    size: usize,
    nodes: usize,
    /// All regular expressions.
    patterns: String,
    /// Where a schema was found.
    seen: HashSet<*const Value>,
    /// What is referred to: it may stand where no schema is looked for.
    referred: Vec<&'a Value>,
}

impl<'a> Survey<'a> {
    fn of(root: &'a Value) -> Result<(), ConstraintError> {
        let (patterns, seen, referred) = (String::new(), HashSet::new(), Vec::new());
        let mut survey = Self { root, size: size(root), nodes: 0, patterns, seen, referred };
        survey.schema(root, 0)?;
        while let Some(schema) = survey.referred.pop() {
            if !survey.seen.contains(&std::ptr::from_ref(schema)) {
                survey.schema(schema, 1)?;
            }
        }
        Ok(())
    }

    fn schema(&mut self, schema: &'a Value, depth: usize) -> Result<(), ConstraintError> {
        self.add(1)?;
        self.seen.insert(std::ptr::from_ref(schema));
        let members = match schema {
            Value::Bool(_) => return Ok(()),
            Value::Object(members) => members,
            _ => return Err(ConstraintError::Schema),
        };
        if depth > MAX_DEPTH {
            return Err(ConstraintError::TooComplex);
        }
        if let Some(keyword) = UNSUPPORTED.iter().find(|keyword| members.contains_key(**keyword)) {
            return Err(ConstraintError::Keyword(keyword));
        }
        // It would change what the references below it mean.
        if depth > 0 && members.contains_key("$id") {
            return Err(ConstraintError::Keyword("$id"));
        }
        self.patterns(members)?;
        self.ways(members)?;
        self.object(members)?;
        for keyword in ["$defs", "definitions", "properties", "patternProperties"] {
            if let Some(schemas) = members.get(keyword) {
                let schemas = schemas.as_object().ok_or(ConstraintError::Keyword(keyword))?;
                schemas.values().try_for_each(|schema| self.schema(schema, depth + 1))?;
            }
        }
        for keyword in ["items", "prefixItems", "additionalItems", "additionalProperties", "anyOf", "oneOf", "allOf"] {
            match members.get(keyword) {
                None => {}
                Some(Value::Array(schemas)) => schemas.iter().try_for_each(|schema| self.schema(schema, depth + 1))?,
                Some(schema) => self.schema(schema, depth + 1)?,
            }
        }
        Ok(())
    }

    /// The library intersects what stands beside `anyOf` and its like with each alternative: what would multiply is refused.
    fn ways(&mut self, members: &Map<String, Value>) -> Result<(), ConstraintError> {
        let mut ways = WAYS.iter().filter(|way| members.contains_key(**way));
        let Some(way) = ways.next() else { return Ok(()) };
        if let Some(reference) = members.get("$ref") {
            // Of this schema, as all of a closed world are; and as it stands: the library would decode what begins with a percent sign.
            let pointer = reference.as_str().and_then(|reference| reference.strip_prefix('#'));
            let target =
                pointer.filter(|pointer| !pointer.contains('%')).and_then(|pointer| self.root.pointer(pointer));
            self.referred.push(target.ok_or(ConstraintError::Keyword("$ref"))?);
        }
        let alternatives = members.get(*way).and_then(Value::as_array).map_or(1, Vec::len);
        let of_values = ["const", "enum"].contains(way);
        let multiplies = ways.next().is_some()
            || ASSERTIONS.iter().any(|keyword| members.contains_key(*keyword))
            || (!of_values && SCALARS.iter().any(|keyword| members.contains_key(*keyword)))
            || (*way == "allOf" && alternatives != 1);
        if multiplies {
            return Err(ConstraintError::Keyword(way));
        }
        if of_values {
            return self.add(members.get(*way).map_or(0, size));
        }
        // Each alternative may refer to all of the schema, which then is copied.
        if members.contains_key("type") { self.add(alternatives.saturating_mul(self.size)) } else { Ok(()) }
    }

    /// What the library does for each property again.
    fn object(&mut self, members: &Map<String, Value>) -> Result<(), ConstraintError> {
        let list = |keyword| members.get(keyword).and_then(Value::as_object);
        let properties = list("properties").map_or(0, Map::len);
        let required = members.get("required").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        if properties.max(required.len()) > MAX_MEMBERS {
            return Err(ConstraintError::TooComplex);
        }
        if properties > 0 && members.contains_key("patternProperties") {
            return Err(ConstraintError::Keyword("patternProperties"));
        }
        let is_open =
            members.contains_key("patternProperties") || members.get("additionalProperties") != Some(&false.into());
        if let Some(least) = members.get("minProperties") {
            // What is not named may be said twice, and then counts once.
            if is_open && least != &Value::from(0) {
                return Err(ConstraintError::Keyword("minProperties"));
            }
            self.add(properties.saturating_mul(properties))?;
        }
        if members.contains_key("maxProperties") {
            self.add(properties.saturating_mul(properties))?;
        }
        let is_named = |name: &&Value| {
            name.as_str().is_some_and(|name| list("properties").is_some_and(|all| all.contains_key(name)))
        };
        let unnamed = required.len() - required.iter().filter(is_named).count();
        self.add(unnamed.saturating_mul(members.get("additionalProperties").map_or(1, size)))
    }

    /// The library makes more of a regular expression than of anything else that is as long.
    fn patterns(&mut self, members: &Map<String, Value>) -> Result<(), ConstraintError> {
        let names = members.get("patternProperties").and_then(Value::as_object).into_iter().flat_map(Map::keys);
        let texts = members.get("pattern").and_then(Value::as_str).into_iter().chain(names.map(String::as_str));
        texts.for_each(|text| self.patterns.push_str(text));
        let is_light = self.patterns.len() <= MAX_PATTERN_BYTES && weight::has_few_classes(&self.patterns);
        if is_light { Ok(()) } else { Err(ConstraintError::TooComplex) }
    }

    fn add(&mut self, nodes: usize) -> Result<(), ConstraintError> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES { Err(ConstraintError::TooComplex) } else { Ok(()) }
    }
}

/// Values in a value, itself included.
fn size(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(size).sum::<usize>(),
        Value::Object(members) => 1 + members.values().map(size).sum::<usize>(),
        _ => 1,
    }
}

/// Levels of schemas in schemas.
const MAX_DEPTH: usize = 32;
/// Of all regular expressions together.
const MAX_PATTERN_BYTES: usize = 8 << 10;
/// Named members of one object.
const MAX_MEMBERS: usize = 1_000;
/// Of about a kilobyte each.
const MAX_NODES: usize = 20_000;
/// Between the parts of JSON, enough for any indentation: a model that goes on with white space for ever would never end.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,64}";
/// Without `\u`: a name has one spelling then, and none of another property can be written in a way that the library does not see.
const ESCAPES: &str = "nrbtf\\\"";

/// Keywords of which an object has one at most, and nothing beside it that would have to be intersected with it.
const WAYS: &[&str] = &["const", "enum", "$ref", "anyOf", "oneOf", "allOf"];
const SCALARS: &[&str] = &[
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
];
const ASSERTIONS: &[&str] = &[
    "items",
    "additionalItems",
    "prefixItems",
    "minItems",
    "maxItems",
    "properties",
    "additionalProperties",
    "patternProperties",
    "required",
    "minProperties",
    "maxProperties",
];
/// Known to a draft, and not to the library.
const UNSUPPORTED: &[&str] = &[
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "propertyNames",
    "uniqueItems",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$dynamicAnchor",
    "$recursiveRef",
    "$recursiveAnchor",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(schema: &str) -> Option<ConstraintError> {
        read(schema).err()
    }

    #[test]
    fn a_keyword_that_is_not_supported_is_named_wherever_it_stands() {
        for (schema, keyword) in [
            (r#"{"not":{}}"#, "not"),
            (r#"{"properties":{"a":{"items":{"uniqueItems":true}}}}"#, "uniqueItems"),
            (r#"{"$defs":{"a":{"anyOf":[{"if":true}]}}}"#, "if"),
            (r#"{"anyOf":[{}],"properties":{}}"#, "anyOf"),
            (r##"{"$ref":"#/$defs/a","minLength":1}"##, "$ref"),
            (r#"{"allOf":[{},{}]}"#, "allOf"),
            (r#"{"properties":{"a":{}},"patternProperties":{"b":{}}}"#, "patternProperties"),
            (r#"{"minProperties":1}"#, "minProperties"),
            (r#"{"items":{"$id":"x"}}"#, "$id"),
            (r#"{"properties":[]}"#, "properties"),
            (r##"{"items":{"$ref":"#/$defs/missing"}}"##, "$ref"),
            (r#"{"$ref":"https://example.com/schema"}"#, "$ref"),
            (r#"{"$ref":5}"#, "$ref"),
            (r##"{"$ref":"#/x","x":{"type":"integer","not":{"const":1}}}"##, "not"),
            (r##"{"$ref":"#/x/0/y","x":[{"y":{"$ref":"#/examples/0"}}],"examples":[{"if":1}]}"##, "if"),
            (r##"{"$ref":"#/a%62","a%62":{},"ab":{"not":{}}}"##, "$ref"),
        ] {
            assert_eq!(refused(schema), Some(ConstraintError::Keyword(keyword)), "{schema}");
        }
    }

    #[test]
    fn what_looks_like_a_keyword_in_data_is_none() {
        for schema in [
            r#"{"properties":{"not":{},"if":{"type":"string"},"$id":{}}}"#,
            r#"{"enum":["not",{"not":1}]}"#,
            r#"{"const":{"if":1}}"#,
            r#"{"default":{"not":1},"examples":[{"if":2}],"unknown":{"not":{}}}"#,
        ] {
            assert_eq!(refused(schema), None, "{schema}");
        }
    }

    #[test]
    fn what_would_multiply_is_refused_and_what_does_not_is_not() {
        let many = |count: usize, one: &str| vec![one; count].join(",");
        let references = many(200, r##"{"$ref":"#/$defs/a"}"##);
        let large = format!(r#"{{"enum":[{}]}}"#, many(1_000, "1"));
        let schema = |beside: &str| format!(r#"{{"$defs":{{"a":{large}}},{beside}"anyOf":[{references}]}}"#);
        assert_eq!(refused(&schema("")), None);
        assert_eq!(refused(&schema(r#""type":"object","#)), Some(ConstraintError::TooComplex));
        let nested = format!("{}true{}", r#"{"items":"#.repeat(34), "}".repeat(34));
        assert_eq!(refused(&nested), Some(ConstraintError::TooComplex));
        assert_eq!(refused(&format!(r#"{{"anyOf":[{}]}}"#, many(20_001, "{}"))), Some(ConstraintError::TooComplex));
    }

    #[test]
    fn what_is_no_schema_is_refused() {
        assert_eq!(refused("{"), Some(ConstraintError::NotJson));
        assert_eq!(refused(&"[".repeat(5_000)), Some(ConstraintError::NotJson));
        assert_eq!(refused("5"), Some(ConstraintError::Schema));
        assert_eq!(refused(r#"{"items":"x"}"#), Some(ConstraintError::Schema));
    }
}
