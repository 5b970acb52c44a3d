//! Cursors that say anything at all.

use proptest::prelude::*;

use super::tests::LISTED;
use super::*;

/// A list from a cursor: refused as `invalid_cursor`, or a condition on key and id.
fn asked(order: &str, cursor: String) -> std::result::Result<bool, TestCaseError> {
    let request = ListRequest { order: Some(order.into()), cursor: Some(cursor), ..ListRequest::default() };
    let mut query = Query::start(&LISTED, &request, &Caller::system("t"))?;
    match query.push_cursor() {
        Ok(()) => {
            let column =
                LISTED.orders.iter().find(|known| known.field == order.trim_start_matches('-')).map(|o| o.column);
            let sql = query.sql.sql();
            prop_assert!(sql.as_str().contains(&format!("({}, x.id) ", column.unwrap_or("?"))), "{}", sql.as_str());
            Ok(true)
        }
        Err(error) => {
            prop_assert_eq!(error.code(), "invalid_cursor");
            Ok(false)
        }
    }
}

fn order() -> impl Strategy<Value = String> {
    let fields = LISTED.orders.iter().map(|order| order.field).collect::<Vec<_>>();
    (any::<bool>(), proptest::sample::select(fields))
        .prop_map(|(descending, field)| format!("{}{field}", if descending { "-" } else { "" }))
}

/// Keys as they are made, at the edges of their types, and any text.
fn key() -> impl Strategy<Value = String> {
    let edges =
        ["NaN", "inf", "-inf", "1e999", "-0", "9223372036854775807", "9223372036854775808", "\0", "", ":", "::"];
    prop_oneof![
        any::<String>(),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f32>().prop_map(|number| number.to_string()),
        proptest::sample::select(edges.map(str::to_owned).to_vec()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_text_is_a_cursor_or_refused(order in order(), text in any::<String>(), bytes in any::<Vec<u8>>()) {
        asked(&order, text)?;
        asked(&order, URL_SAFE_NO_PAD.encode(bytes))?;
    }

    #[test]
    fn any_key_is_a_cursor_or_refused(asked_order in order(), of in order(), key in key(), id in any::<u128>(), cut in any::<prop::sample::Index>()) {
        let cursor = URL_SAFE_NO_PAD.encode(format!("{of}:{}:{key}", Uuid::from_u128(id).simple()));
        let taken = asked(&asked_order, cursor.clone())?;
        prop_assert!(!taken || of == asked_order, "a cursor of {} for {}", of, asked_order);
        asked(&asked_order, cursor[..cut.index(cursor.len())].to_owned())?;
    }

    /// What a list gives as its next page is taken.
    #[test]
    fn own_cursors_are_taken(order in order(), micros in -1_000_000_000_000_000i64..4_000_000_000_000_000, number in any::<i32>(), name in "[^\0]*", id in any::<u128>()) {
        let request = ListRequest { order: Some(order.clone()), ..ListRequest::default() };
        let query = Query::start(&LISTED, &request, &Caller::system("t"))?;
        let key = match query.order.kind {
            Kind::Time => micros.to_string(),
            Kind::Integer => number.to_string(),
            Kind::Real => (number as f32 / 7.0).to_string(),
            Kind::Text => name,
        };
        prop_assert!(asked(&order, query.cursor(key, Uuid::from_u128(id)))?);
    }
}
