//! Completions and dialogs with the semantics of Meta's code.

use kaito_engine::{
    Cancel, ChatMessage, Error, FinishReason, LanguageModel, Stream,
    dialects::meta::{ChatRequest, CompletionRequest, MetaOptions, SPECIAL_TAGS_ERROR},
};

use super::{answer_of, load};

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage { role: role.to_owned(), content: content.to_owned() }
}

fn complete(model: &LanguageModel, prompts: Vec<String>, options: MetaOptions) -> Result<Stream, Error> {
    model.start(CompletionRequest { prompts, options }.prepare(model.context(), &Cancel::default())?)
}

fn chat(model: &LanguageModel, dialogs: Vec<Vec<ChatMessage>>, options: MetaOptions) -> Result<Stream, Error> {
    model.start(ChatRequest { dialogs, options }.prepare(model.context(), &Cancel::default())?)
}

fn options(max_gen_len: usize) -> MetaOptions {
    MetaOptions { temperature: Some(0.0), max_gen_len: Some(max_gen_len), ..MetaOptions::default() }
}

#[tokio::test]
async fn an_unsafe_dialog_is_refused_and_the_others_are_answered() {
    for model in ["meta-llama-7b-type", "llama-multi-head"] {
        let model = load(model, None);
        let dialogs = vec![
            vec![message("user", "tell [INST] me")],
            vec![message("system", "Be brief."), message("user", "Kaito runs")],
            vec![message("user", "a"), message("assistant", "<<SYS>>"), message("user", "b")],
            vec![message("User", "[inst] is no tag")],
        ];
        let (output, streamed) = answer_of(chat(&model, dialogs, options(6)).unwrap()).await.unwrap();
        let refused: Vec<bool> = output.sequences.iter().map(|sequence| sequence.text == SPECIAL_TAGS_ERROR).collect();
        assert_eq!(refused, [true, false, true, false]);
        for (index, sequence) in output.sequences.iter().enumerate() {
            assert_eq!(streamed.get(&index), Some(&sequence.text));
            assert_eq!(sequence.tokens.is_empty(), refused[index]);
        }
        assert!(output.usage.prompt_tokens > 0);
        // A request of refusals alone needs no engine.
        let dialogs = vec![vec![message("user", "[/INST]")]];
        let (output, streamed) = answer_of(chat(&model, dialogs, options(6)).unwrap()).await.unwrap();
        assert_eq!(
            (output.sequences[0].text.as_str(), streamed[&0].as_str()),
            (SPECIAL_TAGS_ERROR, SPECIAL_TAGS_ERROR)
        );
        // It is told also where the only other prompt leaves no room for an answer, and so never leaves the queue.
        let whole = vec![message("user", "Kaito runs")];
        let filled = ChatRequest { dialogs: vec![whole.clone()], options: options(1) };
        let length = filled.prepare(model.context(), &Cancel::default()).unwrap()[0].prompt().len();
        let filled = MetaOptions { max_seq_len: Some(length), ..options(6) };
        let dialogs = vec![whole, vec![message("user", "[/INST]")]];
        let (output, streamed) = answer_of(chat(&model, dialogs, filled).unwrap()).await.unwrap();
        assert_eq!((output.sequences[0].text.as_str(), streamed[&1].as_str()), ("", SPECIAL_TAGS_ERROR));
    }
}

#[tokio::test]
async fn bad_completions_and_dialogs_are_refused_with_a_reason() {
    let model = load("meta-llama-7b-type", Some(64));
    let completion = |prompts: Vec<&str>, options: MetaOptions| {
        let prompts = prompts.into_iter().map(str::to_owned).collect();
        match complete(&model, prompts, options) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        }
    };
    let dialog = |roles: &[&str]| {
        let dialogs = vec![roles.iter().map(|role| message(role, "x")).collect()];
        match chat(&model, dialogs, options(2)) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        }
    };
    let default = MetaOptions::default;
    assert_eq!(completion(vec![], default()), "the request has no prompts: it must have at least one");
    assert_eq!(completion(vec!["x"; 9], default()), "the request has 9 prompts, but `max_batch_size` is 8");
    let two = MetaOptions { max_batch_size: Some(2), ..default() };
    assert_eq!(completion(vec!["x"; 3], two), "the request has 3 prompts, but `max_batch_size` is 2");
    let cases = [
        (
            MetaOptions { max_batch_size: Some(9), ..default() },
            "`max_batch_size` is 9: it must be from 1 to 8, the largest batch of this server",
        ),
        (
            MetaOptions { max_seq_len: Some(65), ..default() },
            "`max_seq_len` is 65: it must be from 1 to 64, the longest sequence of this server",
        ),
        (
            MetaOptions { max_seq_len: Some(0), ..default() },
            "`max_seq_len` is 0: it must be from 1 to 64, the longest sequence of this server",
        ),
        (
            MetaOptions { temperature: Some(-1.0), ..default() },
            "`temperature` is -1: it must be a number of at least 0",
        ),
        (MetaOptions { top_p: Some(1.5), ..default() }, "`top_p` is 1.5: it must be a number from 0 to 1"),
    ];
    for (options, expected) in cases {
        assert_eq!(completion(vec!["x"], options), expected);
    }
    let long = "Kaito runs ".repeat(40);
    let message = completion(vec!["x", &long], default());
    assert!(message.starts_with("prompt 1 has ") && message.ends_with(" tokens, but `max_seq_len` is 64"), "{message}");
    let roles = "they must be \"system\" (or not), then \"user\" and \"assistant\" by turns, and \"user\" at the end";
    for bad in
        [&["assistant"][..], &["user", "user"], &["user", "assistant"], &["system"], &[], &["user", "system", "user"]]
    {
        assert_eq!(dialog(bad), format!("dialog 0 has the roles [{}]: {roles}", bad.join(", ")));
    }
    assert_eq!(dialog(&["system", "user", "assistant", "user"]), "accepted");
}

#[tokio::test]
async fn a_prompt_of_exactly_max_seq_len_gets_an_empty_answer() {
    let model = load("meta-llama-7b-type", None);
    let prompt = "Kaito runs".to_owned();
    let len = model.tokenizer().encode(&prompt, kaito_model::tokenizer::Special::Add).unwrap().len();
    let complete = |max_seq_len: usize| {
        let options = MetaOptions { max_seq_len: Some(max_seq_len), ..options(5) };
        complete(&model, vec![prompt.clone()], options)
    };
    let (output, _) = answer_of(complete(len).unwrap()).await.unwrap();
    assert_eq!((output.sequences[0].text.as_str(), output.sequences[0].finish_reason), ("", FinishReason::Length));
    let (output, _) = answer_of(complete(len + 2).unwrap()).await.unwrap();
    assert_eq!(output.sequences[0].tokens.len(), 2);
    assert!(complete(len - 1).is_err());
}
