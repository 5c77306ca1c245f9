//! Requests in flight, by token.

/// A table that hands out places that were used before first, so that tokens stay small.
///
/// **Invariant:** no more than `limit` places are taken.
#[derive(Debug)]
pub(super) struct Pending<T> {
    places: Vec<Option<T>>,
    free: Vec<u16>,
    limit: u16,
}

impl<T> Pending<T> {
    /// An empty table for `limit` entries.
    pub(super) fn new(limit: u16) -> Self {
        Self { places: Vec::new(), free: Vec::new(), limit }
    }

    /// Whether another entry fits.
    pub(super) fn has_room(&self) -> bool {
        self.len() < usize::from(self.limit)
    }

    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Puts `entry` into a free place and returns its token; gives it back when there is none.
    pub(super) fn insert(&mut self, entry: T) -> Result<u16, T> {
        if !self.has_room() {
            return Err(entry);
        }
        let token = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            (self.places.len() - 1) as u16
        });
        self.places[usize::from(token)] = Some(entry);
        Ok(token)
    }

    /// The entry `token` names; `None` when there is none.
    pub(super) fn get_mut(&mut self, token: u16) -> Option<&mut T> {
        self.places.get_mut(usize::from(token))?.as_mut()
    }

    /// Takes the entry `token` names out; `None` when there is none.
    pub(super) fn remove(&mut self, token: u16) -> Option<T> {
        let entry = self.places.get_mut(usize::from(token))?.take()?;
        self.free.push(token);
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_reused_and_never_more_than_the_limit() {
        let mut pending = Pending::new(2);
        assert_eq!(pending.insert('a'), Ok(0));
        assert_eq!(pending.insert('b'), Ok(1));
        assert_eq!(pending.insert('c'), Err('c'));
        assert_eq!(pending.remove(0), Some('a'));
        assert_eq!(pending.remove(0), None);
        assert_eq!(pending.remove(7), None);
        assert_eq!(pending.insert('d'), Ok(0));
        assert!(!pending.has_room());
        assert_eq!(pending.len(), 2);
    }
}
