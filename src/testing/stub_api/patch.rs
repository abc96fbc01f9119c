//! JSON patches of Nodes.

use serde_json::Value;

/// Applies a patch of `test` and `remove` as a whole, or not at all; says what speaks against it.
pub(super) fn apply(object: &mut Value, patch: &Value) -> Result<(), String> {
    let mut changed = object.clone();
    for operation in patch.as_array().into_iter().flatten() {
        let path = operation["path"].as_str().unwrap_or_default();
        match operation["op"].as_str() {
            Some("test") if changed.pointer(path) == Some(&operation["value"]) => {}
            Some("remove") => remove(&mut changed, path)?,
            _ => return Err(format!("the server rejected {operation}")),
        }
    }
    *object = changed;
    Ok(())
}

/// Removes an item of a list.
fn remove(object: &mut Value, path: &str) -> Result<(), String> {
    let missing = || format!("there is no {path}");
    let (list, index) = path.rsplit_once('/').ok_or_else(missing)?;
    let index: usize = index.parse().map_err(|_| missing())?;
    let list = object.pointer_mut(list).and_then(Value::as_array_mut).ok_or_else(missing)?;
    if index >= list.len() {
        return Err(missing());
    }
    list.remove(index);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_patch_that_fails_in_the_middle_changes_nothing() {
        let mut object = json!({"list": ["a", "b"]});
        let remove = json!({"op": "remove", "path": "/list/1"});
        let test = |value| json!({"op": "test", "path": "/list/0", "value": value});
        assert!(apply(&mut object, &json!([remove, test("z")])).is_err());
        assert!(apply(&mut object, &json!([{"op": "remove", "path": "/list/2"}])).is_err());
        assert_eq!(object, json!({"list": ["a", "b"]}));
        apply(&mut object, &json!([test("a"), remove])).unwrap();
        assert_eq!(object, json!({"list": ["a"]}));
    }
}
