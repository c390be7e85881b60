//! What chat templates take from Python, for which they are written: methods of `str` and `dict`, its idea of white
//! space, and `tojson` as Hugging Face transformers has it, which is `json.dumps`.

use std::fmt::Write;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};
use zeroize::Zeroizing;

use crate::model::MARKS;

/// The methods of Python's `str` and `dict` that chat templates use.
pub(super) fn method(_: &mut State<'_, '_>, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    match value.as_str() {
        Some(text) => method_of_text(text, name, arguments),
        None if value.kind() == ValueKind::Map => method_of_map(value, name, arguments),
        None => None,
    }
    .unwrap_or_else(|| Err(ErrorKind::UnknownMethod.into()))
}

/// Jinja's `trim`, which is Python's `strip`.
pub(super) fn trim(text: &str, set: Option<&str>) -> String {
    text.trim_matches(in_set(set)).to_owned()
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent = options.get::<Option<usize>>("indent")?;
    options.get::<Option<bool>>("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = String::new();
    write_json(&mut out, value, indent, 1)?;
    Ok(out)
}

fn method_of_map(map: &Value, name: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    Some(match (name, arguments) {
        ("get", [key]) => map.get_item(key).map(|item| if item.is_undefined() { Value::from(()) } else { item }),
        ("get", [key, default]) => {
            map.get_item(key).map(|item| if item.is_undefined() { default.clone() } else { item })
        }
        ("keys", []) => map.try_iter().map(Value::from_iter),
        ("values" | "items", []) => map.try_iter().and_then(|keys| {
            let entry = |key: Value| {
                let value = map.get_item(&key)?;
                Ok(if name == "items" { Value::from(vec![key, value]) } else { value })
            };
            keys.map(entry).collect::<Result<Vec<_>, Error>>().map(Value::from)
        }),
        _ => return None,
    })
}

fn method_of_text(text: &str, name: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    let of = |index: usize| arguments.get(index).and_then(Value::as_str);
    let most = |index: usize| arguments.get(index).and_then(Value::as_usize);
    Some(Ok(match (name, arguments.len()) {
        ("strip", 0) => text.trim_matches(is_space).into(),
        ("lstrip", 0) => text.trim_start_matches(is_space).into(),
        ("rstrip", 0) => text.trim_end_matches(is_space).into(),
        ("strip", 1) => text.trim_matches(in_set(Some(of(0)?))).into(),
        ("lstrip", 1) => text.trim_start_matches(in_set(Some(of(0)?))).into(),
        ("rstrip", 1) => text.trim_end_matches(in_set(Some(of(0)?))).into(),
        ("upper", 0) => text.to_uppercase().into(),
        ("lower", 0) => text.to_lowercase().into(),
        ("capitalize", 0) => capitalised(text).into(),
        ("startswith", 1) => any(arguments, |start| unmarked(text).starts_with(start))?.into(),
        ("endswith", 1) => any(arguments, |end| unmarked(text).ends_with(end))?.into(),
        ("replace", 2) => text.replace(of(0)?, of(1)?).into(),
        ("replace", 3) => text.replacen(of(0)?, of(1)?, most(2)?).into(),
        ("removeprefix", 1) => text.strip_prefix(of(0)?).unwrap_or(text).into(),
        ("removesuffix", 1) => text.strip_suffix(of(0)?).unwrap_or(text).into(),
        ("split", 0) => list(text.split(is_space).filter(|part| !part.is_empty())),
        ("split", 1) => list(text.split(Some(of(0)?).filter(|by| !by.is_empty())?)),
        ("split", 2) => list(text.splitn(most(1)?.saturating_add(1), Some(of(0)?).filter(|by| !by.is_empty())?)),
        _ => return None,
    }))
}

/// As the template's author knows it, who has not heard of the marks in what was said.
fn unmarked(text: &str) -> Zeroizing<String> {
    Zeroizing::new(text.replace(|character| MARKS.contains(&character), ""))
}

fn list<'a>(parts: impl Iterator<Item = &'a str>) -> Value {
    parts.map(Value::from).collect::<Vec<_>>().into()
}

/// Whether it holds for the text, or for one of the texts, that the argument is.
fn any(arguments: &[Value], holds: impl Fn(&str) -> bool) -> Option<bool> {
    let argument = arguments.first()?;
    match argument.as_str() {
        Some(text) => Some(holds(text)),
        None => {
            let texts: Vec<Value> = argument.try_iter().ok()?.collect();
            texts.iter().map(Value::as_str).collect::<Option<Vec<_>>>().map(|texts| texts.into_iter().any(holds))
        }
    }
}

/// Python's `str.isspace`: it counts four separators of ASCII that are not `White_Space`.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\x1C'..='\x1F').contains(&character)
}

fn in_set(set: Option<&str>) -> impl Fn(char) -> bool + Copy + use<'_> {
    move |character| set.map_or_else(|| is_space(character), |set| set.contains(character))
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(characters.flat_map(char::to_lowercase)).collect()
}

fn write_json(out: &mut String, value: &Value, indent: Option<usize>, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(ErrorKind::InvalidOperation.into());
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::String => write_json_text(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?;
            write_json_items(out, ['[', ']'], indent, depth, items, |out, item| {
                write_json(out, &item, indent, depth + 1)
            })?;
        }
        ValueKind::Map => {
            let keys = value.try_iter()?;
            write_json_items(out, ['{', '}'], indent, depth, keys, |out, key| {
                write_json_text(out, key.as_str().ok_or(ErrorKind::InvalidOperation)?);
                out.push_str(": ");
                write_json(out, &value.get_item(&key)?, indent, depth + 1)
            })?;
        }
        _ => return Err(ErrorKind::InvalidOperation.into()),
    }
    Ok(())
}

fn write_json_items(
    out: &mut String,
    [open, close]: [char; 2],
    indent: Option<usize>,
    depth: usize,
    items: impl Iterator<Item = Value>,
    mut write: impl FnMut(&mut String, Value) -> Result<(), Error>,
) -> Result<(), Error> {
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent.saturating_mul(depth).min(MAX_INDENT)));
        }
    };
    out.push(open);
    let mut none = true;
    for item in items {
        if !none {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        line(out, depth);
        write(out, item)?;
        none = false;
    }
    if !none {
        line(out, depth - 1);
    }
    out.push(close);
    Ok(())
}

fn write_json_text(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{C}' => out.push_str("\\f"),
            // Writing to a text does not fail.
            '\0'..='\x1F' => drop(write!(out, "\\u{:04x}", u32::from(character))),
            _ => out.push(character),
        }
    }
    out.push('"');
}

/// Of lists and maps within each other.
const MAX_DEPTH: usize = 32;
/// Spaces in front of a line.
const MAX_INDENT: usize = 256;
