//! What `memctl watch` tells: the difference between two looks at the VM.

use std::collections::BTreeMap;
use std::time::Duration;

use memctl::Bytes;
use serde_json::{Value, json};

use super::text::{Line, Tone, listed, time};
use super::view::{Look, Partition};

/// Something that is not as it was.
#[derive(Debug)]
pub(super) struct Change {
    /// A partition's name, or that of shared memory.
    id: String,
    /// What happened, for people.
    what: String,
    tone: Tone,
    /// The monitor's JSON; null when there was no such thing.
    before: Value,
    /// The monitor's JSON; null when there is no such thing any more.
    after: Value,
}

impl Change {
    /// The change as a line for people, `at` after the watch began.
    pub(super) fn line(&self, at: Duration, colours: bool) -> String {
        Line::of(format!("{:>9.3}s  ", at.as_secs_f64()), Tone::Faint)
            .then(format!("{:<10}  ", self.id), Tone::Strong)
            .then(&self.what, self.tone)
            .render(usize::MAX, colours)
    }

    /// The change as one line of JSON.
    pub(super) fn json(&self, at: Duration) -> String {
        let Self { id, before, after, .. } = self;
        let seconds = at.as_secs_f64();
        json!({"seconds": seconds, "id": id, "before": before, "after": after}).to_string()
    }
}

/// What differs between two looks; everything is new without a first one.
pub(super) fn changes(before: Option<&Look>, after: &Look) -> Vec<Change> {
    let was = before.map(by_id).unwrap_or_default();
    let is = by_id(after);
    let gone = was.iter().filter(|(id, _)| !is.contains_key(*id)).map(|(id, old)| Change {
        id: (*id).into(),
        what: "gone".into(),
        tone: Tone::Plain,
        before: old.json.clone(),
        after: Value::Null,
    });
    // In the monitor's order, which is that of their age.
    let changed = after.rows().filter_map(|partition| {
        let old = was.get(partition.id.as_str());
        let what = match old {
            Some(old) => difference(old, partition),
            None if before.is_some() => format!("added: {}", description(partition)),
            None => description(partition),
        };
        (!what.is_empty()).then(|| Change {
            id: partition.id.clone(),
            what,
            tone: Tone::of_state(&partition.state),
            before: old.map_or(Value::Null, |old| old.json.clone()),
            after: partition.json.clone(),
        })
    });
    gone.chain(changed).collect()
}

fn by_id(look: &Look) -> BTreeMap<&str, &Partition> {
    look.rows().map(|partition| (partition.id.as_str(), partition)).collect()
}

fn description(partition: &Partition) -> String {
    let used = partition.used.map(|used| format!("{used} used"));
    listed([Some(partition.progress()), used])
}

fn difference(old: &Partition, new: &Partition) -> String {
    listed([
        moved("", &old.state, &new.state),
        moved("size ", &old.size, &new.size),
        moved("plugged ", &old.plugged, &new.plugged),
        moved("used ", &known(old.used), &known(new.used)),
        moved("spilled ", &old.spilled, &new.spilled),
        moved("stuck ", &old.stuck, &new.stuck),
        new.last_release_us
            .filter(|_| old.last_release_us != new.last_release_us)
            .map(|micros| format!("released in {}", time(Some(micros)))),
    ])
}

fn moved<T: PartialEq + ToString>(what: &str, old: &T, new: &T) -> Option<String> {
    (old != new).then(|| format!("{what}{} -> {}", old.to_string(), new.to_string()))
}

fn known(used: Option<Bytes>) -> String {
    used.map_or_else(|| "unknown".into(), |used| used.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::view::SHARED;
    use super::*;

    fn look(list: Value) -> Look {
        let info = json!({"state": "Running", "config": {"memory": {"size": 1 << 30}}});
        Look::new(info, list).unwrap()
    }

    fn told(before: Option<&Look>, after: &Look) -> Vec<String> {
        let at = Duration::from_millis(1500);
        changes(before, after).iter().map(|change| change.line(at, false)).collect()
    }

    #[test]
    fn first_look_lists_what_is_there() {
        let list = json!([{"id": "fn-7", "state": "plugged", "size": 4096, "plugged": 4096}]);
        assert_eq!(
            told(None, &look(list)),
            [
                "    1.500s  (shared)    Running, 1 GiB of 1 GiB plugged",
                "    1.500s  fn-7        plugged, 4 KiB of 4 KiB plugged, not usable yet",
            ]
        );
    }

    #[test]
    fn each_change_is_told_once_with_all_that_it_changed() {
        let before = look(json!([
            {"id": "a", "state": "bound", "size": 4096, "plugged": 4096, "used": 1024},
            {"id": "b", "state": "plugged"},
        ]));
        let after = look(json!([
            {"id": "a", "state": "draining", "size": 0, "plugged": 4096, "used": 512,
             "last_release_us": 250},
            {"id": "c", "state": "requested", "size": 4096},
        ]));
        assert_eq!(
            told(Some(&before), &after),
            [
                "    1.500s  b           gone",
                "    1.500s  a           bound -> draining, size 4 KiB -> 0 bytes, \
                 used 1 KiB -> 512 bytes, released in 0.250 ms",
                "    1.500s  c           added: requested, 0 bytes of 4 KiB plugged",
            ]
        );
        assert!(told(Some(&after), &after).is_empty());
    }

    #[test]
    fn shared_memory_is_told_apart_from_partitions() {
        let before = look(json!([]));
        let info = json!({
            "state": "Paused", "config": {"memory": {"size": 1 << 30}},
            "device_tree": {"__mem": {"memory": {"shared": {"requested": 1 << 30}}}},
        });
        let after = Look::new(info, json!([])).unwrap();
        let [change] = &changes(Some(&before), &after)[..] else { panic!("one change") };
        assert_eq!(change.what, "Running -> Paused, size 1 GiB -> 2 GiB");
        let json: Value = serde_json::from_str(&change.json(Duration::ZERO)).unwrap();
        assert_eq!(json["id"], SHARED);
        assert_eq!(json["before"]["requested"], 1 << 30);
        assert_eq!(json["after"]["requested"], 2_u64 << 30);
    }

    #[test]
    fn programs_get_the_monitors_own_objects() {
        let partition = json!({"id": "a", "state": "plugged", "extents": [{"addr": 1}]});
        let after = look(json!([partition]));
        let change = &changes(None, &after)[1];
        let json: Value = serde_json::from_str(&change.json(Duration::from_secs(2))).unwrap();
        assert_eq!(json, json!({"seconds": 2.0, "id": "a", "before": null, "after": partition}));
    }
}
