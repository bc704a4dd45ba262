//! What ends an answer, and where its text ends then.

use kaito_engine::{Decoding, FinishReason, StopReason, dialects::openai::SamplingOptions};

use super::super::{PROMPT, load};
use super::{DECODING, ask, complete, encode, greedy, prepare, sampled};

/// The middle of a text, five characters that span tokens.
fn middle(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    chars[chars.len() / 2..chars.len() / 2 + 5].iter().collect()
}

#[tokio::test]
async fn a_stop_string_takes_its_tokens_along_and_is_named() {
    for name in ["llama-multi-head", "falcon-7b-type"] {
        let model = load(name, None);
        let options = || SamplingOptions { logprobs: Some(1), ..greedy(24) };
        let whole = complete(&model, PROMPT, options(), &[]).await.sequences.remove(0);
        let stop = middle(&whole.text);
        let at = whole.text.find(&stop).unwrap();
        let cut = complete(&model, PROMPT, options(), &["never seen", &stop]).await;
        let usage = cut.usage;
        let cut = &cut.sequences[0];
        assert_eq!((cut.text.as_str(), cut.finish_reason), (&whole.text[..at], FinishReason::Stop));
        assert_eq!(cut.stop_reason, Some(StopReason::StopString(stop.clone())));
        assert!(whole.tokens.starts_with(&cut.tokens));
        // As many tokens as it takes to write what is left, and no more.
        let writes = |tokens: usize| {
            let scores = whole.scores.as_ref().unwrap();
            // Special tokens have no text in the answer.
            let shown = scores[..tokens].iter().filter(|score| !model.tokenizer().special_ids().contains(&score.id));
            let bytes: Vec<u8> = shown.flat_map(|score| score.bytes.clone().unwrap()).collect();
            String::from_utf8_lossy(&bytes).starts_with(&cut.text)
        };
        let kept = cut.tokens.len();
        assert!(writes(kept) && !writes(kept - 1), "{name}: {kept} tokens for {:?}", cut.text);
        assert_eq!(cut.scores.as_deref(), Some(&whole.scores.as_ref().unwrap()[..kept]));
        assert!(usage.generated_tokens > kept, "{name}: those of the stop string were generated all the same");
        // And with it.
        let decoding = Decoding { include_stop_string: true, ..DECODING };
        let including = prepare(&model, encode(&model, PROMPT), options(), &[&stop], decoding);
        let (output, _) = ask(&model, including).await;
        let included = &output.sequences[0];
        assert_eq!(included.text, whole.text[..at + stop.len()]);
        assert_eq!(included.stop_reason, cut.stop_reason);
        assert_eq!((included.tokens.len(), output.usage), (usage.generated_tokens, usage));
    }
}

#[tokio::test]
async fn a_stop_string_counts_only_behind_the_least_number_of_tokens() {
    let model = load("llama-multi-head", None);
    let whole = complete(&model, PROMPT, greedy(24), &[]).await.sequences.remove(0);
    // One character of the beginning, which comes again later.
    let at = |character: char, from: usize| whole.text[from..].find(character).map(|at| at + from);
    let (character, first, second) = whole
        .text
        .char_indices()
        .find_map(|(first, character)| Some((character, first, at(character, first + character.len_utf8())?)))
        .unwrap();
    let stop = character.to_string();
    let plain = complete(&model, PROMPT, greedy(24), &[&stop]).await.sequences.remove(0);
    assert_eq!(plain.text, whole.text[..first]);
    let least = plain.tokens.len() + 1;
    let options = SamplingOptions { min_tokens: least, ..greedy(24) };
    let later = complete(&model, PROMPT, options, &[&stop]).await.sequences.remove(0);
    assert!(later.tokens.len() >= least && later.text.len() > first, "{later:?}");
    assert!(later.text.len() <= second || whole.tokens.starts_with(&later.tokens));
}

#[tokio::test]
async fn a_stop_token_is_named_and_has_no_text() {
    let model = load("llama-multi-head", None);
    let whole = complete(&model, PROMPT, greedy(24), &[]).await.sequences.remove(0);
    let stop = whole.tokens[6];
    let first = whole.tokens.iter().position(|&token| token == stop).unwrap();
    let options = || SamplingOptions { stop_token_ids: vec![stop, u32::MAX], logprobs: Some(0), ..greedy(24) };
    let stopped = complete(&model, PROMPT, options(), &[]).await.sequences.remove(0);
    assert_eq!((stopped.finish_reason, stopped.stop_reason), (FinishReason::Stop, Some(StopReason::Token(stop))));
    assert_eq!(stopped.tokens, whole.tokens[..=first]);
    assert!(whole.text.starts_with(&stopped.text));
    assert_eq!(stopped.scores.unwrap().len(), first + 1);
    let shown = Decoding { skip_end_tokens: false, ..DECODING };
    let shown = ask(&model, prepare(&model, encode(&model, PROMPT), options(), &[], shown)).await.0.sequences.remove(0);
    assert!(shown.text.len() > stopped.text.len() && whole.text.starts_with(&shown.text));
    let ended = SamplingOptions { ignore_eos: false, ..options() };
    assert_eq!(ended.resolve(model.context(), &[1]).unwrap().end_tokens, model.context().end_tokens);
}

/// A model whose greedy answer ends by itself.
#[tokio::test]
async fn end_tokens_can_be_ignored_and_put_off() {
    let model = load("llama-multi-head", None);
    let ended = complete(&model, PROMPT, greedy(60), &[]).await.sequences.remove(0);
    assert_eq!((ended.finish_reason, ended.stop_reason), (FinishReason::EndToken, None));
    let end = *ended.tokens.last().unwrap();
    let ignoring = SamplingOptions { ignore_eos: true, ..greedy(60) };
    let ignored = complete(&model, PROMPT, ignoring, &[]).await.sequences.remove(0);
    assert_eq!((ignored.tokens.len(), ignored.finish_reason), (60, FinishReason::Length));
    assert!(ignored.tokens.starts_with(&ended.tokens), "the end token is a token like others then");
    let longer = SamplingOptions { min_tokens: ended.tokens.len() + 3, ..greedy(60) };
    let longer = complete(&model, PROMPT, longer, &[]).await.sequences.remove(0);
    let banned = ended.tokens.len() - 1;
    assert_eq!(longer.tokens[..banned], ended.tokens[..banned]);
    assert!(longer.tokens.iter().position(|&token| token == end).is_none_or(|at| at >= ended.tokens.len() + 3));
}

/// Tokens that are parts of characters come with the text that they make, and all bytes together are the text.
#[tokio::test]
async fn tokens_wait_for_their_text_and_lose_no_byte() {
    let model = load("falcon-7b-type", None);
    // Tokens that are no whole characters come often.
    let part = |id: &u32| model.tokenizer().token_bytes(*id).is_some_and(|bytes| str::from_utf8(&bytes).is_err());
    let parts: Vec<(u32, f32)> = (0..model.info().vocab_size as u32).filter(part).map(|id| (id, 3.0)).collect();
    let options = || SamplingOptions { logprobs: Some(2), logit_bias: parts.clone(), ..sampled(60, 3) };
    let decoding = Decoding { skip_special_tokens: false, skip_end_tokens: false, ..DECODING };
    let (output, deltas) = ask(&model, prepare(&model, encode(&model, PROMPT), options(), &[], decoding)).await;
    let sequence = &output.sequences[0];
    let bytes: Vec<u8> =
        deltas.iter().filter_map(|delta| delta.token.as_ref()).flat_map(|token| token.bytes.clone().unwrap()).collect();
    assert_eq!(String::from_utf8_lossy(&bytes), sequence.text);
    assert!(
        deltas.iter().any(|delta| delta.token.is_some() && delta.text.is_empty()),
        "no token is a part of a character"
    );
    // Stop strings that hold text back without ever being found change nothing of what belongs to what.
    let held: Vec<String> = sequence.text.chars().map(|character| format!("{character}{}", "~".repeat(3))).collect();
    let held: Vec<&str> = held.iter().map(String::as_str).collect();
    let (same, others) = ask(&model, prepare(&model, encode(&model, PROMPT), options(), &held, decoding)).await;
    assert_eq!(&same.sequences[0], sequence);
    // Where the text of each token lies.
    let mut end = 0;
    let mut texts = Vec::new();
    for delta in deltas {
        let start = end;
        end += delta.text.len();
        texts.extend(delta.token.map(|_| start..end));
    }
    let mut texts = texts.into_iter();
    let mut given = 0;
    for delta in others {
        given += delta.text.len();
        if let Some(text) = delta.token.and_then(|_| texts.next()) {
            assert!(text.is_empty() || text.start < given, "a token came before its text, at {text:?} of {given}");
            assert!(given <= text.end, "a token came behind its text, at {text:?} of {given}");
        }
    }
    assert_eq!(texts.next(), None);
}
