//! Adapters as the decoder applies them: which rows of a step have which, and what each adds to a linear map.

use std::ops::Range;

use kaito_model::{adapter::AdapterWeights, config::LinearKind};

use super::{DeviceError, Operations};
use crate::executor::StepInput;

/// The linear maps of a layer that an adapter may change.
const MAPS: [LinearKind; 4] = [LinearKind::Qkv, LinearKind::AttentionOutput, LinearKind::MlpIn, LinearKind::MlpOut];

/// Rows of a step that have the same adapter.
#[derive(Debug)]
struct RowGroup {
    /// The adapter's place among those that are there.
    adapter: usize,
    /// Where its rows stand in the list of all rows that have one.
    rows: Range<usize>,
}

/// An adapter on a device.
struct Loaded<T> {
    id: u32,
    /// Products of each map, layer by layer.
    maps: Vec<Vec<T>>,
}

/// The adapters that are there, and how the rows of the present step are divided among them.
pub(crate) struct Adapters<T> {
    loaded: Vec<Loaded<T>>,
    groups: Vec<RowGroup>,
    rows: Vec<usize>,
}

/// What adapters add to one linear map in a step.
pub struct Adapted<'a, T> {
    adapters: Option<&'a Adapters<T>>,
    map: usize,
}

impl<T> Adapters<T> {
    /// None yet, with room for steps of so many rows and sequences.
    pub(crate) fn with_room_for(rows: usize, sequences: usize) -> Self {
        Self { loaded: Vec::new(), groups: Vec::with_capacity(sequences), rows: Vec::with_capacity(rows) }
    }

    /// Puts an adapter on the device, under a number that no other has.
    pub(crate) fn add<O: Operations<LowRank = T>>(
        &mut self,
        operations: &mut O,
        id: u32,
        weights: AdapterWeights,
        layers: usize,
    ) -> Result<(), DeviceError> {
        let mut maps: Vec<Vec<T>> = Vec::new();
        maps.resize_with(layers * MAPS.len(), Vec::new);
        for term in weights.terms {
            let place = place(term.layer, term.kind);
            let loaded = operations.load_low_rank(term)?;
            if let Some(map) = place.and_then(|place| maps.get_mut(place)) {
                map.push(loaded);
            }
        }
        self.loaded.push(Loaded { id, maps });
        Ok(())
    }

    /// Takes an adapter off the device.
    pub(crate) fn remove(&mut self, id: u32) {
        self.loaded.retain(|loaded| loaded.id != id);
    }

    /// Divides the rows of a step.
    ///
    /// # Errors
    /// The number of an adapter that is wanted and not there.
    pub(crate) fn divide(&mut self, step: &StepInput) -> Result<(), u32> {
        let Self { loaded, groups, rows } = self;
        groups.clear();
        rows.clear();
        let wanted = step.spans.iter().filter_map(|span| span.variant.adapter);
        if let Some(unknown) = wanted.clone().find(|&id| !loaded.iter().any(|loaded| loaded.id == id)) {
            return Err(unknown);
        }
        if wanted.count() == 0 {
            return Ok(());
        }
        for (adapter, Loaded { id, .. }) in loaded.iter().enumerate() {
            let first = rows.len();
            for span in step.spans.iter().filter(|span| span.variant.adapter == Some(*id)) {
                rows.extend(span.first_row..span.first_row + span.rows);
            }
            if rows.len() > first {
                groups.push(RowGroup { adapter, rows: first..rows.len() });
            }
        }
        Ok(())
    }

    /// What they add to a map of a layer.
    pub(crate) fn of(&self, layer: usize, kind: LinearKind) -> Adapted<'_, T> {
        match place(layer, kind) {
            Some(map) if !self.groups.is_empty() => Adapted { adapters: Some(self), map },
            _ => Adapted::none(),
        }
    }
}

fn place(layer: usize, kind: LinearKind) -> Option<usize> {
    Some(layer * MAPS.len() + MAPS.iter().position(|map| *map == kind)?)
}

impl<'a, T> Adapted<'a, T> {
    /// Nothing.
    pub fn none() -> Self {
        Self { adapters: None, map: 0 }
    }

    /// Whether it is nothing.
    pub fn is_empty(&self) -> bool {
        self.groups().all(|(rows, _)| rows.is_empty())
    }

    /// Rows of the step, ascending, and the products that are added to their outputs. No row is in two groups.
    pub fn groups(&self) -> impl Iterator<Item = (&'a [usize], &'a [T])> {
        let map = self.map;
        self.adapters.into_iter().flat_map(move |Adapters { loaded, groups, rows }| {
            groups.iter().filter_map(move |group| {
                let terms = loaded.get(group.adapter)?.maps.get(map)?.as_slice();
                Some((rows.get(group.rows.clone())?, terms)).filter(|_| !terms.is_empty())
            })
        })
    }
}
