//! Notes below the tables: what a reader should know before trusting a figure.

use std::io;

use crate::{
    machine::largest_cache,
    report::{Model, Report, TargetKind},
    statistics::median,
};

/// Below this share of the cores, other processes are not mentioned.
const BUSY: f64 = 0.05;

/// The note about rows that were left out because the model has no room for them.
pub(crate) fn left_out(what: &str, rows: &[usize], model: Option<&Model>, max_batch_size: Option<usize>) -> String {
    let rows = rows.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let room = match (model, max_batch_size) {
        (Some(model), Some(batch)) => {
            format!("{batch} sequences of {} tokens (--max-batch-size, --max-seq-len)", model.max_seq_len)
        }
        (Some(model), None) => format!("sequences of {} tokens", model.max_seq_len),
        _ => "less".to_owned(),
    };
    format!("Left out: {what} {rows}; there is room for {room}.")
}

/// The note about sequences that never all ran at the same time.
pub(crate) fn apart(batch_size: usize, repetitions: usize) -> String {
    format!(
        "In {repetitions} repetitions the {batch_size} sequences never ran all at the same time: the server computes \
         fewer at once, or their answers are too short. Their tokens/s are those from the first token to the last."
    )
}

const EVENTS: &str = "tokens an event";

/// The note about a server that does not send each token in an event of its own.
pub(crate) fn tokens_per_event(samples: &[f64]) -> Option<String> {
    let median = median(samples)?;
    (!(0.99..=1.01).contains(&median))
        .then(|| format!("The server sends {median:.2} {EVENTS}: times between tokens are those between events."))
}

pub(crate) fn is_of_events(note: &str) -> bool {
    note.contains(EVENTS)
}

/// The note about a run without the machine's limits, which has no fractions of them.
pub(crate) fn without_limits(error: &io::Error) -> String {
    format!("The limits of this machine were not measured: no memory to read ({error}).")
}

/// The notes that the finished report needs.
pub(crate) fn about(report: &Report) -> Vec<String> {
    let mut notes = Vec::new();
    let loads = report.rates.iter().map(|row| &row.load).chain(report.clients.iter().map(|row| &row.load));
    let others = report.prefill.iter().map(|row| row.others).chain(report.decode.iter().map(|row| row.others));
    let most = others.chain(loads.map(|load| load.others)).flatten().fold(0.0, f64::max);
    if most > BUSY {
        notes.push(format!(
            "Other processes used up to {:.0}% of the cores (column OTHERS): a quiet machine is faster than these figures.",
            100.0 * most
        ));
    }
    let fractions = report.prefill.iter().filter_map(|row| row.fraction_of_peak).chain(fractions_of_bandwidth(report));
    if fractions.clone().count() > 0 {
        notes.push(
            "Of peak, or of a plain product where there are tile registers: 2 operations for each weight of the \
             layers' matrices and token, and for each weight of the head once a prompt. Of bandwidth: the weights, \
             once a step, and the KV cache of each sequence. The limits are the best of several short rounds \
             between the rows."
                .to_owned(),
        );
    }
    if fractions_of_bandwidth(report).any(|fraction| fraction > 1.0) {
        let cache = largest_cache().unwrap_or(0);
        let cached = report.model.as_ref().filter(|model| model.step_bytes < 2 * cache);
        notes.push(match cached {
            Some(model) => format!(
                "More than 100% of the bandwidth: the weights are {} MiB and the largest cache has {} MiB, so that part \
                 of them is not read from memory.",
                model.step_bytes >> 20,
                cache >> 20
            ),
            None if report.settings.speculate == Some(true) => {
                "More than 100% of the bandwidth: with speculative decoding one step gives several tokens.".to_owned()
            }
            None => "More than 100% of the bandwidth: others had a part of it whenever the limit was measured, or the \
                     loop that measures it keeps fewer loads in flight than the kernels do."
                .to_owned(),
        });
    }
    if report.prefill.iter().filter_map(|row| row.fraction_of_peak).any(|fraction| fraction > 1.0) {
        notes.push(
            "More than 100% of the peak: rows of the embedding are looked up and the output head computes one token \
             alone, but both count; or others had the cores whenever the limit was measured."
                .to_owned(),
        );
    }
    if report.target.kind == TargetKind::Server && report.limits.is_none() {
        notes.push(
            "No fractions of limits: they need a server of ours on this machine, whose metrics describe the model."
                .to_owned(),
        );
    }
    if report.interrupted {
        notes.push("Interrupted: rows that are missing were not measured.".to_owned());
    }
    notes
}

fn fractions_of_bandwidth(report: &Report) -> impl Iterator<Item = f64> + Clone {
    report.decode.iter().filter_map(|row| row.fraction_of_bandwidth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_mentioned_where_they_are_no_tokens() {
        assert_eq!(tokens_per_event(&[1.0, 1.0, 1.002]), None);
        assert_eq!(tokens_per_event(&[]), None);
        let note = tokens_per_event(&[1.5, 1.4, 1.6]).unwrap();
        assert!(note.contains("1.50") && is_of_events(&note), "{note}");
    }
}
